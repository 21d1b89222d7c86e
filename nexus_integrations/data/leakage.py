"""Questions of one part that nearly repeat questions of another."""

import re
from typing import NamedTuple

import numpy as np

from nexus_integrations.data.retrieval import RetrievalDataset
from nexus_integrations.extras import extra


class Repeat(NamedTuple):
    """A question of the second dataset that nearly equals one of the first, by their ids."""

    first: str
    second: str
    similarity: float


def near_duplicates(
    first: RetrievalDataset, second: RetrievalDataset, *, threshold: float = 0.8
) -> list[Repeat]:
    """Return, for each question of `second`, its nearest in `first` where that is near.

    Similarity is the Jaccard index of the questions' sets of words: shared over all. A split that
    has such pairs judges, in part, what was trained on. Raises `ValueError` for a threshold outside
    0 < t ≤ 1.
    """
    with extra("nudge"):
        from scipy.sparse import csr_array

    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in 0 < t ≤ 1, not {threshold}")
    words: dict[str, int] = {}
    parts = []
    for dataset in (first, second):
        sets = [set(re.findall(r"\w+", text.casefold())) for text in dataset.queries.values()]
        ends = np.cumsum([0, *map(len, sets)])
        columns = [words.setdefault(word, len(words)) for one in sets for word in sorted(one)]
        parts.append((np.ones(len(columns), dtype=np.float32), columns, ends))
    left, right = (
        csr_array((ones, columns, ends), shape=(len(ends) - 1, max(1, len(words))))
        for ones, columns, ends in parts
    )
    shared = (right @ left.T).tocoo()  # (n_second, n_first)
    sizes = [np.diff(ends) for _, _, ends in parts]
    every = sizes[1][shared.row] + sizes[0][shared.col] - shared.data
    similarities = shared.data / every
    names = list(first.queries), list(second.queries)
    nearest: dict[int, tuple[float, int]] = {}
    for row, column, similarity in zip(shared.row, shared.col, similarities, strict=True):
        if similarity >= threshold and similarity > nearest.get(int(row), (0.0, 0))[0]:
            nearest[int(row)] = (float(similarity), int(column))
    return [
        Repeat(names[0][column], names[1][row], similarity)
        for row, (similarity, column) in sorted(nearest.items())
    ]
