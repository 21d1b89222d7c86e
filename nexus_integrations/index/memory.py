"""The reference index: exact search over a numpy array."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nexus_integrations.extras import extra
from nexus_integrations.files import written_whole
from nexus_integrations.index.checks import (
    check_none_missing,
    check_queries,
    check_replacement,
    check_vectors,
)
from nexus_integrations.protocols import Floats, Hits, Integers, Metric

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
        queries = check_queries(queries, k, self.dimension)
        k = min(k, len(self._ids))
        if self.metric is Metric.COSINE:
            norms = np.linalg.norm(queries, axis=1, keepdims=True)
            queries = queries / np.maximum(norms, np.finfo(np.float32).tiny)
        step = min(max(k, _BLOCK_SCORES // max(1, len(queries))), len(self._ids))
        # One array for the scores of all blocks: fresh ones cost more than the products in them.
        scores = np.empty(len(queries) * step, dtype=np.float32)
        nearest = _Nearest(len(queries), k, len(self._ids))
        for start in range(0, len(self._ids), max(1, step)):
            stop = min(start + step, len(self._ids))
            block = scores[: len(queries) * (stop - start)].reshape(len(queries), stop - start)
            self._similarities(queries, start, stop, out=block)
            nearest.add(block, start)
        nearest.settle()
        return Hits(
            [[self._ids[row] for row in found] for found in nearest.rows.tolist()], nearest.scores
        )

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Raises `KeyError` for an unknown id and `ValueError` for vectors of another shape, NaN,
        infinity, duplicates or zero under the cosine, each before anything is written.
        """
        rows = self._row_numbers(ids)
        vectors = check_replacement(ids, vectors, self.dimension, self.metric)
        self._vectors[rows] = vectors
        self._squared[rows] = np.einsum("ij,ij->i", vectors, vectors)

    def purge(self) -> str:
        """Do nothing: overwritten vectors are gone."""
        return ""

    def save(self, path: str | Path) -> None:
        """Write ids and vectors as a Parquet file with the columns `id` and `vector`.

        The file appears whole or not at all, and survives a power cut once this returns. Its pages
        and its whole content carry checksums. Raises `ImportError` without pyarrow.
        """
        with extra("jobs"):
            import pyarrow as pa
            import pyarrow.parquet as pq

        values = pa.array(self._vectors.ravel())
        columns = {
            "id": pa.array(self._ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, self.dimension),
        }
        notes = {"metric": self.metric.value, "sha256": _digest(self._ids, self._vectors)}
        table = pa.table(columns).replace_schema_metadata(notes)
        with written_whole(Path(path)) as draft:
            pq.write_table(table, draft, write_page_checksum=True)

    @classmethod
    def load(cls, path: str | Path) -> "MemoryIndex":
        """Read a file that `save` wrote.

        Raises `FileNotFoundError` where there is none and `ValueError` when it is another's or
        damaged.
        """
        with extra("jobs"):
            import pyarrow as pa
            import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, page_checksum_verification=True)
            vectors = table.column("vector").combine_chunks()
            width = vectors.type.list_size
            rows = np.asarray(vectors.flatten()).reshape(len(table), width)
            ids = table.column("id").to_pylist()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {path}") from None
        except (pa.ArrowException, KeyError, AttributeError, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} holds no vectors with ids, or is damaged ({type(error).__name__})"
            ) from None
        notes = table.schema.metadata or {}
        sealed = notes.get(b"sha256")
        if sealed is not None and sealed.decode("ascii", "replace") != _digest(ids, rows):
            raise ValueError(f"{path} is damaged: its vectors are not those that were written")
        return cls(ids, rows, notes.get(b"metric", b"cosine").decode("ascii", "replace"))

    def _row_numbers(self, ids: Sequence[str]) -> list[int]:
        check_none_missing(ids, self.missing(ids))
        return [self._rows[id_] for id_ in ids]

    def _similarities(self, queries: Floats, start: int, stop: int, out: Floats) -> None:
        """Write the similarities of the rows start ≤ row < stop to `out`, (n_queries, n_block)."""
        np.matmul(queries, self._vectors[start:stop].T, out=out)
        if self.metric is Metric.COSINE:
            out /= np.sqrt(self._squared[start:stop])
        elif self.metric is Metric.L2:
            out *= 2
            out -= self._squared[start:stop]
            out -= np.einsum("ij,ij->i", queries, queries)[:, None]


def _digest(ids: Sequence[str], vectors: Floats) -> str:
    digest = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
    return digest.hexdigest()


class _Nearest:
    """The k best scores of each query, and their rows, over blocks of scores that come in turn.

    What clears a query's bar, its k-th score when the bar was last raised, waits until as much has
    gathered as is held: then it is sorted in, and the bar rises. The longer it takes, the rarer.
    """

    def __init__(self, n_queries: int, k: int, n_rows: int) -> None:
        self.scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
        self.rows = np.full((n_queries, k), n_rows, dtype=np.int64)
        self._waiting: list[tuple[Integers, Floats, Integers]] = []  # queries, scores, rows

    def add(self, block: Floats, start: int) -> None:
        """Take the scores of a block, float32 (n_queries, n_block), whose first row is `start`."""
        k = self.scores.shape[1]
        if start == 0 and block.shape[1] > k:  # no bar yet: that of the block itself
            clears = block >= np.partition(block, -k, axis=1)[:, [-k]]
        else:
            clears = block > self.scores[:, -1:]
        places = np.flatnonzero(clears)
        queries, columns = np.divmod(places, block.shape[1])
        self._waiting.append((queries, block.ravel()[places], columns + start))
        if sum(len(rows) for _, _, rows in self._waiting) >= self.scores.size:
            self.settle()

    def settle(self) -> None:
        """Sort in what waits: best first, of equal scores the lower row."""
        n_queries, k = self.scores.shape
        held = (np.repeat(np.arange(n_queries), k), self.scores.ravel(), self.rows.ravel())
        queries, scores, rows = map(np.concatenate, zip(held, *self._waiting, strict=True))
        order = np.lexsort((rows, -scores, queries))
        # The first k of each query; each has at least the k it had before.
        first = np.searchsorted(queries[order], np.arange(n_queries))
        top = order[first[:, None] + np.arange(k)]  # (n_queries, k)
        self.scores, self.rows, self._waiting = scores[top], rows[top], []
