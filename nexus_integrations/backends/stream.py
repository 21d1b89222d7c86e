"""Any number of texts through a model: each once, in batches of like length, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap

import numpy as np

from nexus_integrations.backends import Role
from nexus_integrations.backends.batches import padded, token_batches
from nexus_integrations.backends.tokens import TextTokenizer, Tokens
from nexus_integrations.progress import embedding_bar
from nexus_integrations.protocols import Floats, Integers

Run = Callable[[Integers, Integers], Floats]
"""Ids and their mask, int64 (n, length), 1 for a token and 0 for padding, to unit vectors.

Vectors are float32 (n, dimension).
"""

# A second run at the same time is worth it from this many tokens on.
_WORTH = 128

# Texts tokenised, sorted and held at a time: enough for batches of one length. What the tokenizer
# gives for a text of 256 tokens takes some 20 KB.
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
) -> tuple[Floats, int]:
    """Return the vectors of the texts, float32 (n, dimension), and how many texts were cut off.

    Equal texts are embedded once. Batches have at most `batch_tokens` tokens, but at least one
    text; see `token_batches` for `padded_to` and `multiple`. Where there are several batches,
    `run_beside`, which that many threads may call at a time, computes `runs` of them at once. The
    next texts are tokenised while the model runs on these.
    """
    if len(texts) == 1:
        tokens = tokenizer.tokens(texts, role)
        return run(*padded(tokens.ids, multiple, tokenizer.max_length)), sum(tokens.truncated)
    row_of: dict[str, int] = {}
    rows = [row_of.setdefault(text, len(row_of)) for text in texts]
    unique = list(row_of)
    vectors = np.empty((len(unique), dimension), dtype=np.float32)
    truncated = np.zeros(len(unique), dtype=bool)
    with embedding_bar(len(unique), role) as bar:
        for start, (ids, cut_off) in _tokenised(unique, role, tokenizer):
            truncated[start : start + len(ids)] = cut_off
            lengths = [len(text) for text in ids]
            size = _parted(lengths, batch_tokens, runs)
            parted = list(token_batches(lengths, size, padded_to, multiple))
            inputs = (
                padded([ids[row] for row in batch], multiple, tokenizer.max_length)
                for batch in parted
            )
            found: Iterator[Floats]
            if run_beside is None or len(parted) < 2:
                found = starmap(run, inputs)
            else:
                found = _side_by_side(run_beside, inputs, runs)
            for batch, part in zip(parted, found, strict=True):
                vectors[[start + row for row in batch]] = part
                bar.update(len(batch))
    if len(unique) < len(texts):
        vectors, truncated = vectors[rows], truncated[rows]
    return vectors, int(truncated.sum())


def _parted(lengths: Sequence[int], batch_tokens: int, runs: int) -> int:
    """Return a batch's number of tokens that gives each run a batch, if there are enough."""
    share = -(-sum(lengths) // runs)
    return min(batch_tokens, max(share, _WORTH))


def _side_by_side(
    run: Run, inputs: Iterable[tuple[Integers, Integers]], runs: int
) -> Iterator[Floats]:
    """Yield the vectors of each batch in turn, each computed by one thread."""
    pool = ThreadPoolExecutor(max_workers=runs, thread_name_prefix="nexus-model")
    try:
        yield from pool.map(run, *zip(*inputs, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _tokenised(
    texts: Sequence[str], role: Role, tokenizer: TextTokenizer
) -> Iterator[tuple[int, Tokens]]:
    """Yield each window's first row and tokens, while the next window is tokenised."""
    starts = range(0, len(texts), _WINDOW)
    windows = (texts[start : start + _WINDOW] for start in starts)
    if len(starts) < 2:
        yield from zip(starts, (tokenizer.tokens(window, role) for window in windows), strict=True)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="nexus-tokenizer") as ahead:
        coming = ahead.submit(tokenizer.tokens, next(windows), role)
        for start in starts:
            tokens = coming.result()
            if (window := next(windows, None)) is not None:
                coming = ahead.submit(tokenizer.tokens, window, role)
            yield start, tokens
