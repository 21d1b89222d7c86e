"""Any number of texts through a model: each once, in batches of like length, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

import numpy as np

from nexus_integrations.backends import Role
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.progress import embedding_bar
from nexus_integrations.protocols import Floats, Integers

Run = Callable[[Integers, Integers], Floats]
"""Ids and their mask, int64 (n, length), 1 for a piece and 0 for padding, to unit vectors.

Vectors are float32 (n, dimension).
"""

# A text is padded where it has at least this share of the pieces of its batch's longest one: a
# product of few rows reads the weights for little, which costs more than the padding.
_SHORTEST = 0.75

# Word pieces that are worth parting for a second run at the same time.
_WORTH = 128

# Texts tokenised, sorted and held at a time: enough for batches of one length. What the tokenizer
# gives for a text of 256 pieces takes some 20 KB.
_WINDOW = 1024


def embed(
    texts: Sequence[str],
    role: Role,
    tokenizer: TextTokenizer,
    run: Run,
    *,
    dimension: int,
    batch_tokens: int,
    padded_to: int,
    multiple: int = 1,
    runs: int = 1,
    run_beside: Run | None = None,
) -> Floats:
    """Return the vectors of the texts, float32 (n, dimension).

    Equal texts are embedded once. The texts of a batch have about the same number of word pieces,
    those longer than `padded_to` the same one, up to the next `multiple`, which all are padded to;
    it has at most `batch_tokens` of them, but at least one text. Where there are several batches
    `run_beside`, which may be called from that many threads at a time, makes `runs` of them at
    once. The next texts are tokenised while the model runs on these.
    """
    if len(texts) == 1:
        return run(*padded(tokenizer.pieces(texts, role), multiple, tokenizer.max_length))
    row_of: dict[str, int] = {}
    for text in texts:
        row_of.setdefault(text, len(row_of))
    unique = list(row_of)
    vectors = np.empty((len(unique), dimension), dtype=np.float32)
    with embedding_bar(len(unique), role) as bar:
        for start, pieces in _tokenised(unique, role, tokenizer):
            share = _parted(pieces, batch_tokens, runs)
            parted = list(batches(pieces, share, padded_to, multiple))
            inputs = (
                padded([pieces[row] for row in rows], multiple, tokenizer.max_length)
                for rows in parted
            )
            found: Iterator[Floats]
            if run_beside is None or len(parted) < 2:
                found = starmap(run, inputs)
            else:
                found = _side_by_side(run_beside, inputs, runs)
            for rows, part in zip(parted, found, strict=True):
                vectors[[start + row for row in rows]] = part
                bar.update(len(rows))
    if len(unique) == len(texts):
        return vectors
    return vectors[[row_of[text] for text in texts]]


def batches(
    pieces: Sequence[Sequence[int]], batch_tokens: int, padded_to: int, multiple: int = 1
) -> Iterator[list[int]]:
    """Give row numbers in batches, the longest texts first (memory fails early)."""
    batch: list[int] = []
    longest = 0
    for row in sorted(range(len(pieces)), key=lambda row: -len(pieces[row])):
        same = (longest - 1) // multiple * multiple + 1
        least = longest * _SHORTEST if longest <= padded_to else same
        if batch and (len(pieces[row]) < least or (len(batch) + 1) * longest > batch_tokens):
            yield batch
            batch = []
        if not batch:
            longest = len(pieces[row])
        batch.append(row)
    if batch:
        yield batch


def padded(
    pieces: Sequence[Sequence[int]], multiple: int = 1, max_length: int = 0
) -> tuple[Integers, Integers]:
    """Return ids and mask, int64 (n, length): 0 where a shorter text has ended.

    The length is the longest text's, up to the next multiple that the model reads.
    """
    lengths = np.array([len(text) for text in pieces])
    longest = int(lengths.max())
    length = max(longest, min(-(-longest // multiple) * multiple, max_length))
    mask: Integers = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask.astype(bool)] = np.concatenate([np.asarray(text, dtype=np.int64) for text in pieces])
    return ids, mask


def _parted(pieces: Sequence[Sequence[int]], batch_tokens: int, runs: int) -> int:
    """Return the word pieces of a batch that leave no run without one, if there are enough."""
    share = -(-sum(map(len, pieces)) // runs)
    return min(batch_tokens, max(share, _WORTH))


def _side_by_side(
    run: Run, inputs: Iterable[tuple[Integers, Integers]], runs: int
) -> Iterator[Floats]:
    """Give the vectors of each batch in turn; threads that share a batch wait for each other."""
    pool = ThreadPoolExecutor(max_workers=runs, thread_name_prefix="nexus-model")
    try:
        yield from pool.map(run, *zip(*inputs, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _tokenised(
    texts: Sequence[str], role: Role, tokenizer: TextTokenizer
) -> Iterator[tuple[int, list[list[int]]]]:
    """Give each window's first row and word pieces; the next one is made meanwhile."""
    starts = range(0, len(texts), _WINDOW)
    if len(starts) < 2:
        yield from ((start, tokenizer.pieces(texts, role)) for start in starts)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="nexus-tokenizer") as ahead:
        windows = (texts[start : start + _WINDOW] for start in starts)
        coming = ahead.submit(tokenizer.pieces, next(windows), role)
        for start in starts:
            pieces = coming.result()
            if (window := next(windows, None)) is not None:
                coming = ahead.submit(tokenizer.pieces, window, role)
            yield start, pieces
