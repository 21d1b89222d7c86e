"""NUDGE in closed form, on arrays (Zeighami, Wellmer & Parameswaran, arXiv 2409.02343).

Only documents that answer a training query move, so everything here is sized by those, the
*touched* documents, never by the corpus. G_d is the sum of the vectors of the training queries that
document d answers; γ bounds how far a document moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from nexus_integrations.protocols import Floats, Integers

NUDGE_FT_GAMMAS: tuple[float, ...] = tuple(round(0.02 * step, 2) for step in range(25))
"""The grid of NUDGE-N in `nudge-ft` 0.1.2: 0, 0.02 … 0.48."""

# fmt: off
GAMMAS: tuple[float, ...] = (
    0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.14, 0.2, 0.3, 0.4, 0.48,
)
# fmt: on
"""Our grid for both variants: finer near 0, where the best γ lies once heads are trained."""

# Similarities computed in two ways differ by float32 rounding.
_ROUNDING = 1e-5

# A document whose query sum deviates from it by less than this share points along it already.
_PARALLEL = 1e-6

_BLOCK_ROWS = 256


def query_sums(queries: Floats, answers: Sequence[Sequence[int]], n_documents: int) -> Floats:
    """Return G, float32 (n_documents, dimension): per document the sum of the queries it answers.

    `queries` is float32 (n_queries, dimension); `answers[i]` are the row numbers of the documents
    that are relevant to query i.
    """
    columns = np.repeat(np.arange(len(answers)), [len(found) for found in answers])
    rows = np.fromiter((row for found in answers for row in found), np.int64, len(columns))
    ones = np.ones(len(rows), dtype=np.float32)
    relevance = csr_array((ones, (rows, columns)), shape=(n_documents, len(queries)))
    return np.asarray(relevance @ queries, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """NUDGE-N for some documents, ready for any γ: v(γ) = c·v + √(1−c²)·u, c = max(1−γ/2, limit).

    `base` (v) and `towards` (u) are float32 (n, dimension) with unit rows, u ⟂ v in the plane of v
    and G; `limit`, float32 (n,), is the cosine between v and G, where the turn ends. A document
    with ⟨v, G⟩ < 0 or G ∥ v stays: its `limit` is 1. (Theorem 2 of the paper, and its boundary
    cases as in `nudge-ft`.)
    """

    base: Floats
    towards: Floats
    limit: Floats

    @classmethod
    def of(cls, vectors: Floats, sums: Floats) -> "Turn":
        """Prepare `vectors`, float32 (n, dimension), any length but zero, for their query sums."""
        # Row by row nothing depends on others: in blocks the float64 of it stays in the cache.
        starts = range(0, max(1, len(vectors)), _BLOCK_ROWS)
        blocks = [
            _directions(vectors[i : i + _BLOCK_ROWS], sums[i : i + _BLOCK_ROWS]) for i in starts
        ]
        base, towards, limit = (np.concatenate(part) for part in zip(*blocks, strict=True))
        return cls(base=base, towards=towards, limit=limit)

    def at(self, gamma: float) -> Floats:
        """Return the unit vectors v(γ), float32 (n, dimension), for 0 ≤ γ < 4."""
        c, s = self.weights(gamma)
        return np.asarray(c[:, None] * self.base + s[:, None] * self.towards, dtype=np.float32)

    def weights(self, gamma: float) -> tuple[Floats, Floats]:
        """Return c and s = √(1−c²), each float32 (n,): the weights of `base` and `towards`."""
        c = np.maximum(1 - gamma / 2, self.limit.astype(np.float64))
        return c.astype(np.float32), np.sqrt(np.maximum(0, 1 - c * c)).astype(np.float32)


def _directions(vectors: Floats, sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Return `base`, `towards` and `limit` of a `Turn`, computed in float64."""
    v = vectors.astype(np.float64)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    g = sums.astype(np.float64)
    length = np.linalg.norm(g, axis=1)
    along = np.einsum("ij,ij->i", v, g)
    across = g - along[:, None] * v  # (n, dimension)
    across_length = np.linalg.norm(across, axis=1)
    stays = (along < 0) | (across_length <= _PARALLEL * length)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(stays[:, None], 0, across / across_length[:, None])
        limit = np.where(stays, 1, along / length)
    return v.astype(np.float32), u.astype(np.float32), limit.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """NUDGE-M for some documents, ready for any γ: v(γ) = v + γ·G/‖G‖, not normalised again.

    `base` and `towards` are float32 (n, dimension) with unit rows. (Theorem 1 of the paper.)
    """

    base: Floats
    towards: Floats

    @classmethod
    def of(cls, vectors: Floats, sums: Floats) -> "Shift":
        """Prepare `vectors`, float32 (n, dimension), any length but zero, for their query sums."""
        base = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        return cls(base=base, towards=sums / np.maximum(length, np.finfo(np.float32).tiny))

    def at(self, gamma: float) -> Floats:
        """Return the vectors v(γ), float32 (n, dimension), for γ ≥ 0."""
        c, s = self.weights(gamma)
        return np.asarray(c[:, None] * self.base + s[:, None] * self.towards, dtype=np.float32)

    def weights(self, gamma: float) -> tuple[Floats, Floats]:
        """Return 1 and γ, each float32 (n,): the weights of `base` and `towards`."""
        ones = np.ones(len(self.base), dtype=np.float32)
        return ones, gamma * ones


def rankings(
    moves: Turn | Shift, queries: Floats, others: Floats, gammas: Sequence[float], k: int
) -> Integers:
    """Return the top k of every query for every γ: int64 (n_gammas, n_queries, k), best first.

    `queries` is float32 (n_queries, dimension); `others`, float32 (n_queries, n_others), holds the
    best similarities that each query has with documents that do not move. Entry j < n is the j-th
    document of `moves`, entry n + j the j-th of `others`. A similarity of a moved document is
    c·⟨q, v⟩ + s·⟨q, u⟩, so each γ costs arithmetic, not another pass over vectors.
    """
    n = len(moves.base)
    k = min(k, n + others.shape[1])
    along = queries @ moves.base.T  # (n_queries, n)
    across = queries @ moves.towards.T  # (n_queries, n)
    candidates = _candidates(along, across, others, moves.weights(max(gammas)), k)
    empty = candidates < 0
    places = np.where(empty, 0, candidates)  # (n_queries, n_candidates)
    along = np.take_along_axis(along, places, axis=1)
    across = np.take_along_axis(across, places, axis=1)
    entries = np.concatenate(
        [candidates, np.broadcast_to(np.arange(n, n + others.shape[1]), others.shape)], axis=1
    )
    found = np.empty((len(gammas), len(queries), k), dtype=np.int64)
    for number, gamma in enumerate(gammas):
        c, s = moves.weights(gamma)
        scores = np.where(empty, -np.inf, c[places] * along + s[places] * across)
        scores = np.concatenate([scores, others], axis=1)  # (n_queries, n_candidates + n_others)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found[number] = np.take_along_axis(entries, order, axis=1)
    return found


def _candidates(
    along: Floats, across: Floats, others: Floats, furthest: tuple[Floats, Floats], k: int
) -> Integers:
    """Return the documents that some γ could bring into the top k: int64 (n_queries, width).

    Rows are filled up with −1. `furthest` are the weights at the largest γ: between it and 0 the
    weight of the base vector only falls and that of the direction only rises, which bounds every
    similarity from both sides.
    """
    c, s = furthest
    sure = others  # k documents are always at least as near as its k-th
    if others.shape[1] < k or np.isneginf(others).any():
        low = np.minimum(along, along * c) + s * np.minimum(across, 0)  # (n_queries, n)
        sure = np.concatenate([low, others], axis=1)
    bar = np.partition(sure, -k, axis=1)[:, [-k]]
    high = np.maximum(along, along * c) + s * np.maximum(across, 0)
    rows, documents = np.nonzero(high >= bar - _ROUNDING)
    counts = np.bincount(rows, minlength=len(along))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((len(along), int(counts.max(initial=0))), -1, dtype=np.int64)
    found[rows, places] = documents
    return found


def most_answers_first(
    moves: Shift, queries: Floats, others: Floats, answers: Sequence[Sequence[int]]
) -> float:
    """Return the γ at which most validation answers rank first under NUDGE-M (its own rule).

    Every similarity is linear in γ, so an answer is nearest within one interval of γ; the smallest
    γ that lies in most of them is returned (section 3.1 of the paper). `answers[i]` are entry
    numbers as in `rankings`, restricted to n + n_others; `others` is float32 (n_queries, n_others).
    """
    starts: list[float] = []
    ends: list[float] = []
    base = np.concatenate([queries @ moves.base.T, others], axis=1)  # (n_queries, n + n_others)
    slope = np.concatenate([queries @ moves.towards.T, np.zeros_like(others)], axis=1)
    for row, found in enumerate(answers):
        for answer in found:
            lead = base[row, answer] - base[row]  # the answer's lead over each at γ = 0
            gain = slope[row, answer] - slope[row]  # and how it grows with γ
            # nudge-ft adds 1e-8 in float32; where one answer of a query hands over to another, this
            # decides whether both count.
            with np.errstate(divide="ignore", invalid="ignore"):
                crossing = -lead / (gain + np.float32(1e-8))
            start = max(0.0, float(np.max(crossing[gain > 0], initial=0)))
            end = float(np.min(crossing[gain < 0], initial=np.inf))
            if end >= start and not np.any((gain == 0) & (lead < 0)):
                starts.append(start)
                ends.append(end)
    if not starts:
        return 0.0
    points = np.unique([*starts, *ends])
    begun = np.searchsorted(np.sort(starts), points, side="right")
    over = np.searchsorted(np.sort(ends), points, side="right")
    covering = begun - over  # answers that rank first just above each point
    return float(points[np.argmax(covering)]) if covering.max() > 0 else 0.0
