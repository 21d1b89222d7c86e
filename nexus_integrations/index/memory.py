"""The reference index: exact search over a numpy array."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nexus_integrations.types import Floats, Hits, Integers, Metric

# Scores of one block of documents: 2**22 float32 are 16 MiB, small beside any corpus.
_BLOCK_SCORES = 2**22


class MemoryIndex:
    """Vectors in memory, searched exactly.

    The array is copied on construction, so that `replace` never changes an array of the caller.
    """

    approximate = False

    def __init__(
        self, ids: Sequence[str], vectors: Floats, metric: Metric | str = Metric.COSINE
    ) -> None:
        """Index `vectors`, float32 (n, dimension), under `ids`.

        Raises `ValueError` for a duplicate id, a shape that does not match, a vector with NaN or
        infinity, and, under the cosine, a zero vector; each names the id.
        """
        self.metric = Metric(metric)
        self._ids = list(ids)
        self._vectors = np.array(vectors, dtype=np.float32, order="C")
        if self._vectors.ndim != 2 or len(self._ids) != len(self._vectors):
            raise ValueError(
                f"expected one row of vectors per id: {len(self._ids)} ids, "
                f"vectors of shape {self._vectors.shape}"
            )
        self._rows = {id_: row for row, id_ in enumerate(self._ids)}
        if len(self._rows) < len(self._ids):
            twice = next(id_ for id_, times in Counter(self._ids).items() if times > 1)
            raise ValueError(f"id {twice!r} occurs more than once")
        check_vectors(self._ids, self._vectors, self.metric)
        self._squared = np.einsum("ij,ij->i", self._vectors, self._vectors)  # (n,): ‖d‖²

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        """The number of stored vectors."""
        return len(self._ids)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold."""
        return {id_ for id_ in ids if id_ not in self._rows}

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time, in insertion order."""
        for start in range(0, len(self._ids), batch_size):
            yield self._ids[start : start + batch_size]

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return a copy of the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        return self._vectors[self._row_numbers(ids)]

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension), exactly.

        Equal similarities are ranked by insertion order. Raises `ValueError` for k < 1 and for
        queries of another dimension.
        """
        queries = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"queries have dimension {queries.shape[1]}, the index has {self.dimension}: "
                "they come from different models"
            )
        k = min(k, len(self._ids))
        if self.metric is Metric.COSINE:
            norms = np.linalg.norm(queries, axis=1, keepdims=True)
            queries = queries / np.maximum(norms, np.finfo(np.float32).tiny)
        best = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), k), len(self._ids), dtype=np.int64)
        step = max(k, _BLOCK_SCORES // max(1, len(queries)))
        for start in range(0, len(self._ids), step):
            block = self._similarities(queries, start, start + step)  # (n_queries, ≤ step)
            best, rows = _merge_top(best, rows, block, start)
        return Hits([[self._ids[row] for row in found] for found in rows.tolist()], best)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Raises `KeyError` for an unknown id and `ValueError` for vectors of another shape, NaN,
        infinity, duplicates or zero under the cosine, each before anything is written.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        rows = self._row_numbers(ids)
        if vectors.shape != (len(rows), self.dimension):
            raise ValueError(
                f"expected vectors of shape {(len(rows), self.dimension)}, got {vectors.shape}"
            )
        if len(set(rows)) < len(rows):
            raise ValueError("an id occurs more than once among those to replace")
        check_vectors(ids, vectors, self.metric)
        self._vectors[rows] = vectors
        self._squared[rows] = np.einsum("ij,ij->i", vectors, vectors)

    def save(self, path: str | Path) -> None:
        """Write ids and vectors as a Parquet file with the columns `id` and `vector`.

        The file appears whole or not at all.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = pa.array(self._vectors.ravel())
        columns = {
            "id": pa.array(self._ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, self.dimension),
        }
        table = pa.table(columns).replace_schema_metadata({"metric": self.metric.value})
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(table, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "MemoryIndex":
        """Read a file that `save` wrote; raises `ValueError` when it is another's or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            vectors = table.column("vector").combine_chunks()
            width = vectors.type.list_size
            rows = np.asarray(vectors.flatten()).reshape(len(table), width)
            ids = table.column("id").to_pylist()
        except (pa.ArrowInvalid, KeyError, AttributeError, IsADirectoryError) as error:
            raise ValueError(f"{path} holds no vectors with ids: {error}") from None
        return cls(ids, rows, (table.schema.metadata or {}).get(b"metric", b"cosine").decode())

    def _row_numbers(self, ids: Sequence[str]) -> list[int]:
        try:
            return [self._rows[id_] for id_ in ids]
        except KeyError as error:
            raise KeyError(f"the index holds no document {error.args[0]!r}") from None

    def _similarities(self, queries: Floats, start: int, stop: int) -> Floats:
        block = self._vectors[start:stop]
        scores = queries @ block.T  # (n_queries, n_block)
        if self.metric is Metric.COSINE:
            scores /= np.sqrt(self._squared[start:stop])
        elif self.metric is Metric.L2:
            scores = 2 * scores - self._squared[start:stop]
            scores -= np.einsum("ij,ij->i", queries, queries)[:, None]
        return np.asarray(scores, dtype=np.float32)


def check_vectors(ids: Sequence[str], vectors: Floats, metric: Metric) -> None:
    """Raise `ValueError`, which names the first id, for vectors that no index can rank.

    These are vectors with NaN or infinity and, under the cosine, vectors of length zero.
    `vectors` is (len(ids), dimension).
    """
    squared = np.einsum("ij,ij->i", vectors, vectors)  # (n,): NaN and infinity propagate
    for bad, what in (
        (~np.isfinite(squared), "has NaN or infinite entries"),
        (squared == 0 if metric is Metric.COSINE else None, "is zero, so its cosine is undefined"),
    ):
        if bad is not None and bad.any():
            raise ValueError(
                f"the vector of document {ids[int(np.argmax(bad))]!r} {what} "
                f"({int(bad.sum())} such vectors): embed it again or remove it"
            )


def _merge_top(best: Floats, rows: Integers, block: Floats, start: int) -> tuple[Floats, Integers]:
    """Merge a block's scores, (n_queries, n_block), into the best k so far, sorted, ties by row."""
    k = best.shape[1]
    if start == 0 and block.shape[1] > k:
        # At first nothing is known: without a bar to clear, all scores would be candidates.
        found = np.argpartition(block, -k, axis=1)[:, -k:]  # (n_queries, k)
        bar = np.take_along_axis(block, found, axis=1).min(axis=1, keepdims=True)
        query, column = np.nonzero(block >= bar)
    else:
        query, column = np.nonzero(block > best[:, -1:])
    query = np.concatenate([np.repeat(np.arange(len(best)), k), query])
    scores = np.concatenate([best.ravel(), block[query[best.size :], column]])
    where = np.concatenate([rows.ravel(), column + start])
    order = np.lexsort((where, -scores, query))
    # The first k of each query; each has at least the k it had before.
    first = np.searchsorted(query[order], np.arange(len(best)))
    top = order[first[:, None] + np.arange(k)]  # (n_queries, k)
    return scores[top], where[top]
