"""Questions of one part that nearly repeat questions of another."""

import re
from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from nexus_integrations.data.retrieval import RetrievalDataset
from nexus_integrations.extras import extra

_ROWS = 1024  # questions that are compared at a time


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
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in 0 < t ≤ 1, not {threshold}")
    sets = [
        [set(re.findall(r"\w+", text.casefold())) for text in dataset.queries.values()]
        for dataset in (first, second)
    ]
    counts = Counter(word for part in sets for one in part for word in one)
    ranks = {word: rank for rank, word in enumerate(sorted(counts, key=lambda w: (counts[w], w)))}
    ranked = [[sorted(ranks[word] for word in one) for one in part] for part in sets]
    left, right = (_matrix(part, len(ranks)) for part in ranked)
    # Sets that are so alike share one of the rarest n − ⌈t·n⌉ + 1 words of each (the prefix filter
    # of Chaudhuri, Ganti and Kaushik, 2006): common words alone make no pair to be compared.
    rare_left, rare_right = (
        _matrix(
            [one[: len(one) - ceil(threshold * len(one) - 1e-9) + 1] for one in part], len(ranks)
        )
        for part in ranked
    )
    sizes = [np.array([len(one) for one in part]) for part in ranked]
    names = list(first.queries), list(second.queries)
    found = []
    for start in range(0, len(names[1]), _ROWS):
        pairs = (rare_right[start : start + _ROWS] @ rare_left.T).tocoo()
        rows, columns = pairs.row + start, pairs.col
        shared = np.asarray(left[columns].multiply(right[rows]).sum(axis=1)).ravel()  # (n_pairs,)
        similarities = shared / (sizes[0][columns] + sizes[1][rows] - shared)
        near = np.flatnonzero(similarities >= threshold)
        rows, columns, similarities = rows[near], columns[near], similarities[near]
        order = np.lexsort((columns, -similarities, rows))
        for place in order[np.unique(rows[order], return_index=True)[1]]:  # the nearest of each
            names_of = names[0][columns[place]], names[1][rows[place]]
            found.append(Repeat(*names_of, float(similarities[place])))
    return found


def _matrix(sets: Sequence[Sequence[int]], width: int) -> Any:
    """Return a sparse array, (n_sets, width), with a one for each number of each set."""
    with extra("nudge"):
        from scipy.sparse import csr_array

    ends = np.cumsum([0, *map(len, sets)])
    columns = np.fromiter((number for one in sets for number in one), np.int64, int(ends[-1]))
    return csr_array((np.ones(len(columns)), columns, ends), shape=(len(sets), max(1, width)))
