"""Texts in batches of about one length, which is where a model is fast."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nexus_integrations.protocols import Integers

# A text is padded where it has at least this share of the tokens of its batch's longest one: a
# product of few rows reads the weights for little, which costs more than the padding.
_SHORTEST = 0.75


def batches_by_length(
    lengths: Sequence[int],
    size: int,
    *,
    rows: int | None = None,
    shortest: Callable[[int], float] = lambda longest: 0,
) -> Iterator[list[int]]:
    """Yield row numbers in batches, the longest first, so that memory fails early.

    A batch has at most `rows` rows, and as many as its longest one makes `size` of, but at least
    one row. A row shorter than `shortest(longest row of the batch)` begins the next batch. Rows of
    one length stay in their order.
    """
    batch: list[int] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        full = len(batch) == rows or (len(batch) + 1) * longest > size
        if batch and (full or lengths[row] < shortest(longest)):
            yield batch
            batch = []
        if not batch:
            longest = lengths[row]
        batch.append(row)
    if batch:
        yield batch


def token_batches(
    lengths: Sequence[int], size: int, padded_to: int, multiple: int = 1
) -> Iterator[list[int]]:
    """Yield row numbers in batches of at most `size` tokens, padding included.

    Texts of up to `padded_to` tokens share a batch with somewhat shorter ones; longer texts only
    with those that reach the same multiple of `multiple`.
    """

    def shortest(longest: int) -> float:
        if longest <= padded_to:
            return longest * _SHORTEST
        return (longest - 1) // multiple * multiple + 1

    return batches_by_length(lengths, size, shortest=shortest)


def padded(
    texts: Sequence[Sequence[int]], multiple: int = 1, max_length: int = 0
) -> tuple[Integers, Integers]:
    """Return the ids of texts' tokens and their mask, int64 (n, length), both 0 for padding.

    The length is the longest text's, rounded up to a multiple of `multiple` within `max_length`.
    """
    lengths = np.array([len(text) for text in texts])
    longest = int(lengths.max())
    length = max(longest, min(-(-longest // multiple) * multiple, max_length))
    mask: Integers = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask.astype(bool)] = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
    return ids, mask
