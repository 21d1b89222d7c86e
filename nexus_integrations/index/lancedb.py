"""Vectors in a LanceDB table."""

import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from nexus_integrations.index.checks import (
    NOTE,
    as_hits,
    check_none_missing,
    check_queries,
    check_replacement,
    in_order,
    new_note,
    slices,
    unique,
)
from nexus_integrations.protocols import Floats, Hits, Metric

_METRICS = {"cosine": Metric.COSINE, "dot": Metric.DOT, "l2": Metric.L2}
_BATCH_SIZE = 1000  # ids in one WHERE clause
_TAG = f"lancedb:tag:{NOTE}"  # LanceDB's form for a tag that a user defines


class LanceDBIndex:
    """A table of LanceDB whose `id_column` is unique, which LanceDB does not watch over.

    Every `replace` makes a new version of the table: a way back, and disk space until
    `table.optimize()` clears it. It also takes the replaced rows out of a vector index: they are
    found at once all the same, and `table.optimize()` brings them back into it.
    """

    def __init__(
        self,
        table: Any,
        id_column: str = "id",
        vector_column: str = "vector",
        metric: Metric | str | None = None,
    ) -> None:
        """Wrap `table`, a `lancedb.table.Table` (LlamaIndex keeps it as `vector_store.table`).

        LanceDB ranks by the metric that each query names: without `metric` it is that of the
        vector index or, where there is none, LanceDB's own, L2. Raises `NotImplementedError` for
        columns of other types than string and float32 list of fixed size.
        """
        self.table = table
        self.id_column = id_column
        self.vector_column = vector_column
        kinds = {name: table.schema.field(name).type for name in (id_column, vector_column)}
        if str(kinds[id_column]) not in ("string", "large_string"):
            raise NotImplementedError(
                f"LanceDB column {id_column!r} holds {kinds[id_column]}: ids must be strings"
            )
        self._vector_type = kinds[vector_column]
        if str(getattr(self._vector_type, "value_type", "")) != "float" or not hasattr(
            self._vector_type, "list_size"
        ):
            raise NotImplementedError(
                f"LanceDB column {vector_column!r} holds {self._vector_type}: vectors must be "
                "lists of float32 of one fixed size"
            )
        stored = self._index_metric()
        if metric is None and stored not in (None, *_METRICS):
            raise NotImplementedError(
                f"LanceDB ranks column {vector_column!r} by {stored}: use cosine, dot or l2"
            )
        self.metric = Metric(metric or _METRICS[stored or "l2"])

    @property
    def approximate(self) -> bool:
        """Whether there is a vector index for this metric; without one LanceDB compares all."""
        return self._index_metric() == self.metric.value

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self._vector_type.list_size)

    def __len__(self) -> int:
        """The number of stored vectors."""
        return int(self.table.count_rows(f"{_name(self.vector_column)} IS NOT NULL"))

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold."""
        wanted = unique(ids)
        stored: set[str] = set()
        for part in slices(len(wanted), _BATCH_SIZE):
            rows = self._rows(wanted[part], [self.id_column])
            stored.update(rows.column(self.id_column).to_pylist())
        return set(wanted) - stored

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, at most `batch_size` at a time."""
        query = self.table.search().where(f"{_name(self.vector_column)} IS NOT NULL")
        for batch in query.select([self.id_column]).to_batches(batch_size):
            yield batch.column(self.id_column).to_pylist()

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        found: dict[str, Any] = {}
        wanted = unique(ids)
        for part in slices(len(wanted), _BATCH_SIZE):
            rows = self._rows(wanted[part], [self.id_column, self.vector_column])
            vectors = rows.column(self.vector_column).combine_chunks().flatten()
            names = rows.column(self.id_column).to_pylist()
            matrix = np.asarray(vectors).reshape(len(names), self.dimension)
            found.update(zip(names, matrix, strict=True))
        return in_order(ids, found, self.dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension).

        By LanceDB's own search; an index that stores vectors shortened (PQ, SQ, RQ) proposes
        documents, and their similarities are those of the vectors themselves.
        """
        queries = check_queries(queries, k, self.dimension)
        return as_hits([self._nearest(query, k) for query in queries])

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension), in one version.

        Raises `KeyError` and `ValueError` as `MemoryIndex.replace` does, before anything is
        written.
        """
        import pyarrow as pa

        vectors = check_replacement(ids, vectors, self.dimension, self.metric)
        check_none_missing(ids, self.missing(ids))
        if not len(ids):
            return
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.dimension)
        kind = self.table.schema.field(self.id_column).type
        new = pa.table(
            {
                self.id_column: pa.array(list(ids), kind),
                self.vector_column: values.cast(self._vector_type),
            }
        )
        # Only the columns given change.
        self.table.merge_insert(self.id_column).when_matched_update_all().execute(new)

    @property
    def identity(self) -> str:
        """What `mark` left in the metadata of the vector column; "" before."""
        metadata = self.table.schema.field(self.vector_column).metadata or {}
        note = metadata.get(_TAG.encode(), b"").decode()
        return f"lancedb:{note}" if note else ""

    def mark(self) -> str:
        """Give the table an identity, if it has none, and return it.

        "" for a LanceDB without `update_field_metadata` (before 0.33.1).
        """
        if not self.identity and hasattr(self.table, "update_field_metadata"):
            new = {"path": self.vector_column, "metadata": {_TAG: new_note()}}
            self.table.update_field_metadata(new)
        return self.identity

    def purge(self) -> str:
        """Remove all versions of the table but the latest, by `table.optimize`.

        A process that still reads an earlier version fails.
        """
        with warnings.catch_warnings():  # LanceDB says the above
            warnings.filterwarnings("ignore", message="optimize")
            self.table.optimize(cleanup_older_than=timedelta(0))
        return (
            "LanceDB versions under a tag or branch, and copies and backups of the table, keep "
            "earlier vectors"
        )

    def _index_metric(self) -> str | None:
        for index in self.table.list_indices():
            if list(index.columns) == [self.vector_column]:
                return str(self.table.index_stats(index.name).distance_type).lower()
        return None

    def _rows(self, ids: Sequence[str], columns: list[str]) -> Any:
        names = ", ".join("'" + id_.replace("'", "''") + "'" for id_ in ids)
        where = f"{_name(self.id_column)} IN ({names}) AND {_name(self.vector_column)} IS NOT NULL"
        return self.table.search().where(where).select(columns).to_arrow()

    def _nearest(self, query: Floats, k: int) -> list[tuple[str, float]]:
        search = self.table.search(query, vector_column_name=self.vector_column)
        # refine_factor reads the vectors themselves again; without an index it changes nothing.
        search = search.distance_type(self.metric.value).limit(k).refine_factor(1)
        rows = search.select([self.id_column, "_distance"]).to_arrow()
        distances = np.asarray(rows.column("_distance"), dtype=np.float64)  # (k,)
        similarities = -distances if self.metric is Metric.L2 else 1 - distances
        return list(
            zip(rows.column(self.id_column).to_pylist(), similarities.tolist(), strict=True)
        )


def _name(column: str) -> str:
    """Quote a column's name as LanceDB's SQL wants it, by backticks."""
    return f"`{column}`"
