"""Vectors and words: two rankings of the same passages, added with one weight.

A passage's score is `s + weight · BM25 / (the best BM25 for this question)`, `s` its cosine (or
what stands for it, see `cosines`). Dividing by the best BM25 makes one weight fit short and long
questions.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Encoder, Floats, Hits, Metric, VectorIndex
from nexus_integrations.retrievers.dense import DenseRetriever, check_fits

if TYPE_CHECKING:
    from nexus_integrations.lexical import LexicalIndex

_BATCH = 256  # questions that the index is searched with at a time
_DEPTH = 100  # passages that each side names at least
_SAMPLE = 100  # passages by which the words of another corpus are told
_ROUNDING = 1e-5  # similarities of a search and of stored vectors differ by this much


class Match(NamedTuple):
    """A passage that was found, and why.

    `score` is what it is ranked by; `similarity` its vector's with the question (nan where vectors
    were not asked), `words` its BM25, `share` that over the best BM25 for the question, in 0..1.
    """

    id: str
    score: float
    similarity: float
    words: float
    share: float


class Candidates(NamedTuple):
    """Passages that may answer one question, with both scores.

    `similarities` and `words` (BM25) are float32 (n,), in the order of `ids`; `best` is the highest
    BM25 of all passages for the question, 0 where none has a word of it.
    """

    ids: list[str]
    similarities: Floats
    words: Floats
    best: float

    @property
    def shares(self) -> Floats:
        """Return BM25 over the best BM25, float32 (n,), in 0..1."""
        return np.asarray(self.words / np.float32(self.best or 1), dtype=np.float32)

    def ranked(self, weight: float, k: int) -> list[Match]:
        """Return the k best passages at a weight, best first, of equal scores by id."""
        shares = self.shares
        scores = shares if math.isinf(weight) else self.similarities + np.float32(weight) * shares
        order = sorted(range(len(self.ids)), key=lambda row: (-scores[row], self.ids[row]))[:k]
        columns = (scores, self.similarities, self.words, shares)
        return [Match(self.ids[row], *(float(column[row]) for column in columns)) for row in order]


class Coverage(NamedTuple):
    """How many passages both sides hold, and how many one side alone."""

    both: int
    only_vectors: int
    only_words: int


class HybridRetriever:
    """Rank passages by their vectors and by their words at once."""

    def __init__(
        self, index: VectorIndex, encoder: Encoder, lexical: "LexicalIndex", *, weight: float
    ) -> None:
        """Join an index, the encoder that filled it, and the words of the same passages.

        `weight` is that of the words, at least 0: at 0 they are not asked, and at infinity the
        vectors are not. A passage that the words lack is found by its vector alone; one that the
        index lacks is not found (see `coverage`). Raises `ValueError` for a weight below 0 or nan,
        an encoder of another dimension, and the words of another corpus.
        """
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, not {weight}")
        check_fits(index, encoder)
        check_same_corpus(index, lexical)
        self.index = index
        self.encoder = encoder
        self.lexical = lexical
        self.weight = float(weight)

    def within(self, view: VectorIndex) -> "HybridRetriever":
        """Return the same retriever over a view of the index, such as a filtered one.

        Of the words' passages those come back that the view holds: its `vectors` raise `KeyError`
        for others, and `missing` names them.
        """
        narrowed = object.__new__(HybridRetriever)
        vars(narrowed).update(vars(self), index=view)
        return narrowed

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k best passages of each question text, best first, of equal scores by id."""
        if self.weight == 0:
            return DenseRetriever(self.index, self.encoder).search(texts, k)
        return as_hits(self.matches(texts, k))

    def matches(self, texts: Sequence[str], k: int) -> list[list[Match]]:
        """Return what `search` does, with both scores of each passage.

        Raises `ValueError` for k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        vectors = None if math.isinf(self.weight) else self.encoder.encode_queries(texts)
        found: list[list[Match]] = []
        for start in progress_bar(range(0, len(texts), _BATCH), desc="search", unit="batch"):
            part = slice(start, start + _BATCH)
            rows = None if vectors is None else vectors[part]
            found += self._matches(list(texts[part]), rows, k, max(_DEPTH, 2 * k))
        return found

    def coverage(self) -> Coverage:
        """Count the passages that both sides hold, and those of one side alone; reads all ids."""
        words = {id_ for batch in self.lexical.ids() for id_ in batch}
        stored = {id_ for batch in self.index.ids() for id_ in batch}
        return Coverage(len(words & stored), len(stored - words), len(words - stored))

    def _matches(
        self, texts: list[str], vectors: Floats | None, k: int, depth: int
    ) -> list[list[Match]]:
        joined = Union(self.index, self.lexical, texts, vectors, depth)
        found = [each.ranked(self.weight, k) for each in joined.candidates(self.weight, k)]
        # Words name passages that a filter, or a deletion, keeps from being found: look further.
        short = [
            row
            for row, matches in enumerate(found)
            if len(matches) < k and joined.unknown[row] and len(joined.words.ids[row]) == depth
        ]
        if short:
            rows = None if vectors is None else vectors[short]
            again = self._matches([texts[row] for row in short], rows, k, 4 * depth)
            for row, matches in zip(short, again, strict=True):
                found[row] = matches
        return found


class Union:
    """What both sides name for some questions, and the scores of it on both."""

    def __init__(
        self,
        index: VectorIndex,
        lexical: "LexicalIndex",
        texts: list[str],
        vectors: Floats | None,
        depth: int,
    ) -> None:
        """Ask each side for `depth` passages.

        `vectors` are the questions', float32 (n_questions, dimension); None asks words alone.
        """
        self.index, self.lexical, self.texts, self.vectors = index, lexical, texts, vectors
        self.words = lexical.search(texts, depth)
        empty: list[list[str]] = [[] for _ in texts]
        none = np.zeros((len(texts), 0), dtype=np.float32)
        self.near = Hits(empty, none) if vectors is None else index.search(vectors, depth)
        self.unknown = [0 for _ in texts]  # passages of the words that the index lacks
        self._depth = depth

    def candidates(self, weight: float | None = None, k: int = 0) -> list[Candidates]:
        """Return the candidates of each question, scored on both sides.

        With a weight those are left out that cannot be among its k best: what a side did not name
        scores there at most as the last that it named (Fagin's threshold). An approximate index may
        have passed over a nearer one: there the bound is the similarity of the first.
        """
        named = [self._named(row) for row in range(len(self.texts))]
        if weight is not None and not math.isinf(weight):
            named = [self._within_reach(row, *pair, weight, k) for row, pair in enumerate(named)]
        near_only = [[id_ for id_ in near if id_ not in words] for near, words in named]
        bm25 = self._bm25(near_only)
        words_only = [[id_ for id_ in words if id_ not in near] for near, words in named]
        similarities = self._similarities(words_only)
        found = []
        for row, (near, words) in enumerate(named):
            near = {**near, **similarities[row]}
            words = {**bm25[row], **words}
            ids = list(near)
            found.append(
                Candidates(
                    ids,
                    np.array([near[id_] for id_ in ids], dtype=np.float32),
                    np.array([words.get(id_, 0.0) for id_ in ids], dtype=np.float32),
                    self._best(row),
                )
            )
        return found

    def _named(self, row: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the similarity and the BM25 of what each side named for a question."""
        near = cosines(self.near.similarities[row], self.index.metric).tolist()
        words = self.words.similarities[row].tolist()
        return (
            dict(zip(self.near.ids[row], near, strict=False)),
            dict(zip(self.words.ids[row], words, strict=False)),
        )

    def _best(self, row: int) -> float:
        return float(self.words.similarities[row, 0]) if self.words.ids[row] else 0.0

    def _within_reach(
        self, row: int, near: dict[str, float], words: dict[str, float], weight: float, k: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Leave out what cannot be among the k best."""
        if not near or not words:
            return near, words
        per_word = weight / self._best(row)
        least = sorted(
            (s + per_word * words.get(id_, 0.0) for id_, s in near.items()), reverse=True
        )
        bar = (least[k - 1] if len(least) >= k else -math.inf) - _ROUNDING
        farthest = max(near.values()) if self.index.approximate else min(near.values())
        rest = min(words.values()) if len(words) == self._depth else 0.0
        return (
            {i: s for i, s in near.items() if s + per_word * words.get(i, rest) >= bar},
            {i: w for i, w in words.items() if near.get(i, farthest) + per_word * w >= bar},
        )

    def _bm25(self, ids: list[list[str]]) -> list[dict[str, float]]:
        """Return the BM25 of passages that the words did not name among their best."""
        # Where all that have a word were named, the others have none.
        asked = [
            found if len(self.words.ids[row]) == self._depth else []
            for row, found in enumerate(ids)
        ]
        rows = self.lexical.scores(self.texts, asked)
        return [
            dict(zip(some, row.tolist(), strict=True))
            for some, row in zip(asked, rows, strict=True)
        ]

    def _similarities(self, ids: list[list[str]]) -> list[dict[str, float]]:
        """Return the similarities of passages that the index did not name among its nearest."""
        wanted = list(dict.fromkeys(id_ for some in ids for id_ in some))
        if not wanted:
            return [{} for _ in ids]
        missing: set[str] = set()
        stored = np.zeros((0, 0), dtype=np.float32)
        try:
            if self.vectors is not None:
                stored = self.index.vectors(wanted)
        except KeyError:
            missing = self.index.missing(wanted)
            wanted = [id_ for id_ in wanted if id_ not in missing]
            stored = self.index.vectors(wanted)
        if self.vectors is None:
            missing = self.index.missing(wanted)
        rows = {id_: row for row, id_ in enumerate(wanted)}
        found = []
        for number, some in enumerate(ids):
            kept = [id_ for id_ in some if id_ not in missing]
            self.unknown[number] = len(some) - len(kept)
            if self.vectors is None:
                values = [math.nan] * len(kept)
            else:
                base = stored[[rows[id_] for id_ in kept]]  # (n_kept, dimension)
                values = _similarity(self.vectors[number], base, self.index.metric).tolist()
            found.append(dict(zip(kept, values, strict=True)))
        return found


def as_hits(found: Sequence[Sequence[Match]]) -> Hits:
    """Return matches as `Hits`; rows with fewer end in −∞."""
    width = max(map(len, found), default=0)
    scores = np.full((len(found), width), -np.inf, dtype=np.float32)
    for row, matches in enumerate(found):
        scores[row, : len(matches)] = [match.score for match in matches]
    return Hits([[match.id for match in matches] for matches in found], scores)


def cosines(similarities: Floats, metric: Metric) -> Floats:
    """Turn an index's similarities into what is added to words, in the same order.

    That is the cosine; for `DOT` the dot product, and for `L2` 1 − ‖q − d‖²/2, each of which is the
    cosine for vectors of length one.
    """
    if metric is Metric.L2:
        return np.asarray(1 + similarities / 2, dtype=np.float32)
    return similarities


def check_same_corpus(index: VectorIndex, lexical: "LexicalIndex") -> None:
    """Raise `ValueError` when none of some passages of the words is in the index."""
    sample = next(lexical.ids(_SAMPLE), [])
    if sample and len(index.missing(sample)) == len(sample):
        raise ValueError(
            f"none of {len(sample)} passages of the lexical index, such as {sample[0]!r}, is in "
            "the vector index: these are the words of another corpus, or have other ids"
        )


def _similarity(query: Floats, stored: Floats, metric: Metric) -> Floats:
    """Return the similarity as `cosines` does of a question, (dimension,), and stored vectors."""
    products = stored @ query  # (n,)
    if metric is Metric.COSINE:
        return np.asarray(
            products / np.linalg.norm(stored, axis=1) / np.linalg.norm(query), np.float32
        )
    if metric is Metric.L2:
        apart = np.einsum("ij,ij->i", stored - query, stored - query)
        return np.asarray(1 - apart / 2, dtype=np.float32)
    return np.asarray(products, dtype=np.float32)
