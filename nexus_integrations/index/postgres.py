"""Vectors in a Postgres table, through pgvector."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

from nexus_integrations.index.checks import (
    as_hits,
    check_form,
    check_none_missing,
    check_queries,
    check_replacement,
    in_order,
    slices,
    unique,
)
from nexus_integrations.protocols import Floats, Hits, Metric

try:
    import psycopg
    from psycopg import errors, sql
    from psycopg.pq import TransactionStatus
except ImportError as error:
    raise ImportError(
        'PostgresIndex needs psycopg 3: pip install "nexus-integrations[postgres]"'
    ) from error

_OPERATORS = {Metric.COSINE: "<=>", Metric.DOT: "<#>", Metric.L2: "<->"}
_CLASSES = {
    "vector_cosine_ops": Metric.COSINE,
    "vector_ip_ops": Metric.DOT,
    "vector_l2_ops": Metric.L2,
}
_ID_TYPES = {"text": "text", "character varying": "text", "uuid": "uuid", "bigint": "bigint"}
_BATCH_SIZE = 1000
_MOST_CANDIDATES = 1000  # the upper bound of pgvector's hnsw.ef_search

_TYPE = """
    SELECT atttypid::regtype::text, atttypmod FROM pg_attribute
    WHERE attrelid = %(table)s::regclass AND attname = %(column)s AND NOT attisdropped
"""
_INDEXES = """
    SELECT o.opcname FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    JOIN pg_opclass o ON o.oid = i.indclass[0]
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %(table)s::regclass AND a.attname = %(column)s AND i.indisvalid
      AND m.amname IN ('hnsw', 'ivfflat')
"""
_IDENTITY = """
    SELECT s.system_identifier::text, d.oid::text, %(table)s::regclass::oid::text
    FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()
"""


class PostgresIndex:
    """A column of type `vector` in a Postgres table, and the column of its ids.

    Each call is one transaction, committed before it returns; on a connection with an open
    transaction it joins that one, and the commit is yours. The id need not be unique, as in the
    tables of LlamaIndex, where a node added twice has two rows: such an id is counted, listed and
    found once, one of its vectors is read, and `replace` writes all of them. An updated row leaves
    its old version in an HNSW index until Postgres vacuums the table.
    """

    def __init__(
        self,
        connection: "psycopg.Connection[Any] | str",
        table: str,
        id_column: str,
        vector_column: str,
        *,
        schema: str = "public",
        metric: Metric | str | None = None,
        where: sql.Composable | None = None,
    ) -> None:
        """Wrap a table, by a connection or a DSN (`postgresql://…`, not SQLAlchemy's form).

        A query names its metric in Postgres, not the table: give the one the framework ranks by
        (LlamaIndex: always the cosine). Without it, it is that of the column's vector index.
        `where` restricts the index to some rows, for tables that hold several collections:
        `sql.SQL("collection_id = {}").format(sql.Literal(id))`.

        Raises `ValueError` when there is no metric to read, and `NotImplementedError` for columns
        of other types; `halfvec` rounds what is written, so it could not be restored.
        """
        if isinstance(connection, str):
            connection = psycopg.connect(connection, autocommit=True)
        self.connection = connection
        name = sql.Identifier(schema, table).as_string(connection)
        self._column = {"table": name, "column": vector_column}
        id_type, _ = self._type(name, id_column)
        vector_type, size = self._type(name, vector_column)
        if vector_type.split(".")[-1] != "vector" or id_type not in _ID_TYPES:
            raise NotImplementedError(
                f"Postgres columns {id_column!r} {id_type} and {vector_column!r} {vector_type}: "
                f"use an id of type {', '.join(_ID_TYPES)} and a vector of type vector, which "
                "keeps float32"
            )
        self._id_type = _ID_TYPES[id_type]
        self._size: int | None = size if size > 0 else None
        stored = self._index_metrics()
        if metric is None and len(stored) != 1:
            raise ValueError(
                f"{name} has {len(stored)} vector indexes to read a metric from: give metric="
            )
        self.metric = Metric(metric) if metric is not None else next(iter(stored))
        vector = sql.Identifier(vector_column)
        self._parts: dict[str, sql.Composable] = {
            "table": sql.Identifier(schema, table),
            "id": sql.Identifier(id_column),
            "type": sql.SQL(self._id_type),
            "vector": vector,
            "where": sql.SQL("{} IS NOT NULL AND ({})").format(vector, where or sql.SQL("TRUE")),
            "distance": sql.SQL("{} {} %(query)s::vector").format(
                vector, sql.SQL(_OPERATORS[self.metric])
            ),
        }

    @property
    def approximate(self) -> bool:
        """Whether there is an HNSW or IVFFlat index for this metric, which a query may use."""
        return self.metric in self._index_metrics()

    @property
    def dimension(self) -> int:
        """The length of a vector; `ValueError` for an empty table that does not declare it."""
        if self._size is None:
            rows = self._fetch("SELECT vector_dims({vector}) FROM {table} WHERE {where} LIMIT 1")
            if not rows:
                raise ValueError("the table is empty and declares no dimension: add rows first")
            self._size = int(rows[0][0])
        return self._size

    def __len__(self) -> int:
        """The number of different ids with a vector."""
        return int(self._fetch("SELECT count(DISTINCT {id}) FROM {table} WHERE {where}")[0][0])

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold, or that are not of its type."""
        keys = {}
        for id_ in ids:
            with suppress(KeyError):
                keys[id_] = self._key(id_)
        query = (
            "SELECT {id}::text FROM {table} WHERE {id} = ANY(%(ids)s::text[]::{type}[]) AND {where}"
        )
        wanted = unique(keys.values())
        stored: set[str] = set()
        for part in slices(len(wanted), _BATCH_SIZE):
            stored.update(row[0] for row in self._fetch(query, ids=wanted[part]))
        return {id_ for id_ in ids if keys.get(id_) not in stored}

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time, as of the first."""
        query = "SELECT DISTINCT {id}::text FROM {table} WHERE {where}"
        # A cursor that outlives its transaction: between two batches none is open, so that what
        # the caller does meanwhile is committed.
        cursor = self.connection.cursor(name=f"nexus_{uuid4().hex}", withhold=True)
        try:
            with self.connection.transaction():
                cursor.execute(sql.SQL(query).format(**self._parts))
            while True:
                with self.connection.transaction():
                    rows = cursor.fetchmany(batch_size)
                if not rows:
                    return
                yield [row[0] for row in rows]
        finally:
            with self.connection.transaction():
                cursor.close()

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        wanted = [self._key(id_) for id_ in ids]
        query = (
            "SELECT {id}::text, {vector}::text FROM {table} "
            "WHERE {id} = ANY(%(ids)s::text[]::{type}[]) AND {where}"
        )
        found: dict[str, Any] = {}
        once = unique(wanted)
        for part in slices(len(once), _BATCH_SIZE):
            rows = self._fetch(query, ids=once[part])
            # As text it needs no adapter, whose type differs between versions of pgvector.
            found.update((id_, json.loads(vector)) for id_, vector in rows)
        return in_order(wanted, found, self.dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension).

        A vector index looks through k candidates or more, at most 1000. Where these hold too few
        documents, for old versions of updated rows are among them, an HNSW index goes on (pgvector
        0.8 or later); when that finds fewer than k as well, all rows are compared.
        """
        queries = check_queries(queries, k, self.dimension)
        indexed = self.approximate
        nearest = (
            "SELECT {id}::text, {distance} FROM {table} WHERE {where} "
            "ORDER BY {distance} LIMIT %(k)s"
        )
        # No index serves an expression, so this compares all rows.
        exact = nearest.replace("ORDER BY {distance}", "ORDER BY ({distance}) + 0")
        found = []
        with self.connection.transaction():
            if indexed:
                self._fetch(
                    "SELECT set_config('hnsw.ef_search', greatest(%(k)s, "
                    "coalesce(current_setting('hnsw.ef_search', true), '40')::int)::text, true)",
                    k=min(k, _MOST_CANDIDATES),
                )
                if k <= _MOST_CANDIDATES:
                    # The settings of an extension are listed once its library is loaded, by a cast.
                    self._fetch("SELECT '[0]'::vector")
                    self._fetch(
                        "SELECT set_config(name, 'strict_order', true) FROM pg_settings "
                        "WHERE name = 'hnsw.iterative_scan'"
                    )
            for query in queries:
                text = json.dumps(query.tolist())
                rows = self._fetch(nearest, query=text, k=k)
                if indexed and len(rows) < k:
                    rows = self._fetch(exact, query=text, k=k)
                best: dict[str, float] = {}
                for id_, distance in rows:
                    best.setdefault(id_, self._similarity(distance))
                found.append(list(best.items()))
        return as_hits(found)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension), all or none.

        Raises `KeyError` and `ValueError` as `MemoryIndex.replace` does, before anything is
        written.
        """
        wanted = [self._key(id_) for id_ in ids]
        vectors = check_replacement(wanted, vectors, self.dimension, self.metric)
        update = (
            "UPDATE {table} SET {vector} = nexus_new.nexus_vector::vector "
            "FROM unnest(%(ids)s::text[]::{type}[], %(vectors)s::text[]) "
            "AS nexus_new(nexus_id, nexus_vector) WHERE {id} = nexus_id AND {where}"
        )
        with self.connection.transaction():
            check_none_missing(ids, self.missing(ids))
            for part in slices(len(wanted), _BATCH_SIZE):
                texts = [json.dumps(vector) for vector in vectors[part].tolist()]
                self._fetch(update, ids=wanted[part], vectors=texts)

    @property
    def identity(self) -> str:
        """What Postgres calls the cluster, the database and the table, and their rows.

        The same after VACUUM and in a physical copy; another after dump and restore or
        pg_upgrade, and for another `where`. "" where the role may not call `pg_control_system()`.
        """
        try:
            (found,) = self._execute(sql.SQL(_IDENTITY), self._column)
        except (errors.InsufficientPrivilege, errors.UndefinedFunction):
            return ""
        rows = self._parts["where"].as_string(self.connection)
        return ":".join(["postgres", *found, hashlib.sha256(rows.encode()).hexdigest()[:16]])

    def purge(self) -> str:
        """Run VACUUM on the table, outside of transactions; readers and writers go on."""
        connection = self.connection
        if connection.info.transaction_status is not TransactionStatus.IDLE:
            return (
                "Postgres keeps earlier vectors in the table, since it cannot vacuum within an "
                "open transaction: commit it and run VACUUM"
            )
        before = connection.autocommit
        connection.autocommit = True
        try:
            connection.execute(sql.SQL("VACUUM {table}").format(**self._parts))
        finally:
            connection.autocommit = before
        return (
            "Postgres keeps earlier vectors in free space of the table's pages until that is used "
            "again (VACUUM FULL writes the table anew, and locks it), and in its write-ahead log, "
            "replicas and backups"
        )

    def _similarity(self, distance: float) -> float:
        """Turn pgvector's 1 − cos, −⟨q, d⟩ and ‖q − d‖ into similarities."""
        if self.metric is Metric.COSINE:
            return 1 - distance
        return -distance if self.metric is Metric.DOT else -(distance**2)

    def _key(self, id_: str) -> str:
        """Return the id, which must be in the form in which the column's type prints it."""
        if self._id_type == "text":
            return id_
        try:
            stored = str(UUID(id_)) if self._id_type == "uuid" else str(int(id_))
        except ValueError:
            raise KeyError(
                f"the index holds no document {id_!r}: ids here are of type {self._id_type}"
            ) from None
        check_form(id_, stored)
        return stored

    def _type(self, table: str, column: str) -> tuple[str, int]:
        rows = self._execute(sql.SQL(_TYPE), {"table": table, "column": column})
        if not rows:
            raise ValueError(f"{table} has no column {column!r}")
        return rows[0][0], rows[0][1]

    def _index_metrics(self) -> set[Metric]:
        rows = self._execute(sql.SQL(_INDEXES), self._column)
        return {_CLASSES[name] for (name,) in rows if name in _CLASSES}

    def _fetch(self, statement: str, **values: Any) -> list[Any]:
        return self._execute(sql.SQL(statement).format(**self._parts), values)

    def _execute(self, query: "sql.SQL | sql.Composed", values: dict[str, Any]) -> list[Any]:
        with self.connection.transaction():
            cursor = self.connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []
