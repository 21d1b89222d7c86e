"""Vectors in a Milvus collection, in Milvus Lite or behind a server."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

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

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_METRICS = {"COSINE": Metric.COSINE, "IP": Metric.DOT, "L2": Metric.L2}
_INDEX_TYPES = ("FLAT", "IVF_FLAT", "HNSW", "AUTOINDEX")
# A server takes messages of 64 MiB and gives at most 16,384 rows to a query.
_BATCH_FLOATS = 2**22
_BATCH_SIZE = 1000
_QUERY_ROWS = 16_384
_VARCHAR, _INT64, _FLOAT_VECTOR = 21, 5, 101  # pymilvus.DataType


class MilvusIndex:
    """A collection of Milvus with one float vector per entity and ids of your own.

    `replace` is a partial upsert, which needs Milvus 2.6.2 or Milvus Lite. A server finds at most
    16,384 documents per query (its `quotaAndLimits.limits.topK`), and raises for a larger k.
    """

    def __init__(
        self,
        client: Any,
        collection: str,
        id_field: str = "id",
        vector_field: str = "vector",
    ) -> None:
        """Wrap `collection` of `client`, a `pymilvus.MilvusClient`, and load it.

        Loading is needed in a new process: a collection opened again is released. Raises
        `NotImplementedError` for ids that Milvus makes itself, since an upsert may then make new
        ones, and for vectors or vector indexes that are not exact float32.
        """
        self.client = client
        self.collection = collection
        self.id_field = id_field
        self.vector_field = vector_field
        described = client.describe_collection(collection)
        fields = {field["name"]: field for field in described["fields"]}
        if described.get("auto_id") or fields[id_field].get("auto_id"):
            raise NotImplementedError(
                f"Milvus makes the ids of {collection!r} itself, and an upsert may change them: "
                "use auto_id=False and ids of your own"
            )
        if not fields[id_field].get("is_primary"):
            raise ValueError(f"{id_field!r} is not the primary key of {collection!r}")
        if int(fields[vector_field]["type"]) != _FLOAT_VECTOR:
            raise NotImplementedError(
                f"Milvus field {vector_field!r} is no FLOAT_VECTOR: use one, which is exact"
            )
        self._number = int(fields[id_field]["type"]) == _INT64
        self.dimension = int(fields[vector_field]["params"]["dim"])
        self._batch_size = max(1, min(_BATCH_SIZE, _BATCH_FLOATS // self.dimension))
        names = client.list_indexes(collection, field_name=vector_field)
        if not names:
            raise ValueError(f"Milvus field {vector_field!r} has no index: create one first")
        index = client.describe_index(collection, names[0])
        kind, metric = index["index_type"], index["metric_type"]
        if kind not in _INDEX_TYPES or metric not in _METRICS:
            raise NotImplementedError(
                f"Milvus index {kind} by {metric} is not supported: use one of {_INDEX_TYPES} by "
                f"one of {tuple(_METRICS)}"
            )
        self.metric = _METRICS[metric]
        self.approximate = kind != "FLAT"
        client.load_collection(collection)

    def __len__(self) -> int:
        """The number of stored vectors."""
        rows = self.client.query(
            self.collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(rows[0]["count(*)"])

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold."""
        wanted = unique(ids)
        stored: set[str] = set()
        for part in slices(len(wanted), self._batch_size):
            rows = self._rows(wanted[part], [self.id_field])
            stored.update(str(row[self.id_field]) for row in rows)
        return set(wanted) - stored

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, at most `batch_size` at a time."""
        condition = ""
        while True:
            # One page by each iterator: going on, it would not escape quotation marks in an id.
            iterator = self.client.query_iterator(
                self.collection,
                batch_size=min(batch_size, _QUERY_ROWS),
                filter=condition,
                output_fields=[self.id_field],
                consistency_level="Strong",
            )
            try:
                rows = iterator.next()  # in the order of the ids
            finally:
                iterator.close()
            if not rows:
                return
            yield [str(row[self.id_field]) for row in rows]
            last = json.dumps(rows[-1][self.id_field], ensure_ascii=False)
            condition = f"{self.id_field} > {last}"

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        found: dict[str, Any] = {}
        wanted = unique(ids)
        for part in slices(len(wanted), self._batch_size):
            for row in self._rows(wanted[part], [self.id_field, self.vector_field]):
                found[str(row[self.id_field])] = row[self.vector_field]
        return in_order(ids, found, self.dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension).

        By Milvus's own search, with its default parameters for the index.
        """
        queries = check_queries(queries, k, self.dimension)
        found: list[list[tuple[str, float]]] = []
        # Milvus counts the squared distance down, the others up.
        sign = -1 if self.metric is Metric.L2 else 1
        for part in slices(len(queries), max(1, _QUERY_ROWS // k)):
            for hits in self.client.search(
                self.collection,
                data=queries[part].tolist(),
                limit=k,
                anns_field=self.vector_field,
                consistency_level="Strong",
            ):
                found.append([(str(hit[self.id_field]), sign * hit["distance"]) for hit in hits])
        return as_hits(found)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        All other fields stay. Raises `KeyError` and `ValueError` as `MemoryIndex.replace` does,
        before anything is written. Written in batches: an interrupted call has replaced some, and
        may be repeated.
        """
        vectors = check_replacement(ids, vectors, self.dimension, self.metric)
        check_none_missing(ids, self.missing(ids))  # an upsert would insert them
        for part in slices(len(ids), self._batch_size):
            new = [
                {self.id_field: self._key(id_), self.vector_field: vector}
                for id_, vector in zip(ids[part], vectors[part].tolist(), strict=True)
            ]
            self.client.upsert(self.collection, new, partial_update=True)

    @property
    def identity(self) -> str:
        """What `mark` left in the collection's properties, with the vector field; "" before."""
        found = self.client.describe_collection(self.collection).get("properties") or {}
        note = dict(found).get(NOTE)
        return f"milvus:{note}:{self.vector_field}" if note else ""

    def mark(self) -> str:
        """Give the collection an identity, if it has none, and return it.

        "" where the server refuses properties that it does not know.
        """
        from pymilvus import MilvusException

        if not self.identity:
            with suppress(MilvusException):
                self.client.alter_collection_properties(self.collection, {NOTE: new_note()})
        return self.identity

    def purge(self) -> str:
        """Write the collection's log into segments, and ask Milvus to compact them."""
        self.client.flush(self.collection)
        self.client.compact(self.collection)
        return (
            "Milvus keeps earlier vectors in saved segments until it has compacted these and its "
            "garbage collector removes the old ones (dataCoord.gc.dropTolerance, hours by "
            "default), and in backups"
        )

    def _key(self, id_: str) -> str | int:
        return int(id_) if self._number else id_

    def _rows(self, ids: Sequence[str], fields: list[str]) -> Any:
        # A filter of our own: `client.get` breaks on a quotation mark in an id.
        if self._number:  # no other string is the id of an entity
            ids = [id_ for id_ in ids if _INTEGER.fullmatch(id_)]
        keys = json.dumps([self._key(id_) for id_ in ids], ensure_ascii=False)
        return self.client.query(
            self.collection,
            filter=f"{self.id_field} in {keys}",
            output_fields=fields,
            consistency_level="Strong",
        )
