"""Vectors in a Chroma collection, in a folder or behind a server."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from nexus_integrations.index.checks import (
    as_hits,
    check_none_missing,
    check_queries,
    check_replacement,
    in_order,
    slices,
    unique,
)
from nexus_integrations.protocols import Floats, Hits, Metric

_METRICS = {"cosine": Metric.COSINE, "ip": Metric.DOT, "l2": Metric.L2}


class ChromaIndex:
    """A Chroma collection.

    Nothing here makes a client: telemetry is a setting of yours
    (`chromadb.Settings(anonymized_telemetry=False)`). The collection's embedding function is never
    called. Under the cosine Chroma gives vectors back to about 1e-7, else exactly.
    """

    # Chroma searches a graph (HNSW or SPANN), and brings it up to date itself on an update.
    approximate = True

    def __init__(self, collection: Any) -> None:
        """Wrap `collection`, a `chromadb.Collection`.

        LlamaIndex keeps it as `vector_store.client`, LangChain as `vector_store._collection`.
        """
        self.collection = collection
        configuration = collection.configuration
        space = (configuration.get("hnsw") or configuration.get("spann"))["space"]
        self.metric = _METRICS[space]
        # The largest call is the client's to say, 5461 rows for a folder; a collection does not
        # make its client public.
        self._batch_size = int(collection._client.get_max_batch_size())
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """The length of a vector; `ValueError` for an empty collection, which has none yet."""
        if self._dimension is None:
            first = self.collection.get(limit=1, include=["embeddings"])["embeddings"]
            if not len(first):
                raise ValueError(
                    f"the Chroma collection {self.collection.name!r} is empty: add documents first"
                )
            self._dimension = len(first[0])
        return self._dimension

    def __len__(self) -> int:
        """The number of stored vectors."""
        return int(self.collection.count())

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold."""
        wanted = unique(ids)
        stored: set[str] = set()
        for part in slices(len(wanted), self._batch_size):
            stored.update(self.collection.get(ids=wanted[part], include=[])["ids"])
        return set(wanted) - stored

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time."""
        start = 0
        while found := self.collection.get(limit=batch_size, offset=start, include=[])["ids"]:
            yield found
            start += len(found)

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        found: dict[str, Any] = {}
        wanted = unique(ids)
        for part in slices(len(wanted), self._batch_size):
            got = self.collection.get(ids=wanted[part], include=["embeddings"])
            found.update(zip(got["ids"], got["embeddings"], strict=True))
        return in_order(ids, found, self.dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension).

        By the collection's own search, with the `ef_search` it is configured with.
        """
        queries = check_queries(queries, k, self.dimension)
        found: list[list[tuple[str, float]]] = []
        for part in slices(len(queries), self._batch_size):
            got = self.collection.query(
                query_embeddings=queries[part], n_results=k, include=["distances"]
            )
            for ids, distances in zip(got["ids"], got["distances"], strict=True):
                found.append(
                    [(id_, self._similarity(d)) for id_, d in zip(ids, distances, strict=True)]
                )
        return as_hits(found)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Raises `KeyError` and `ValueError` as `MemoryIndex.replace` does, before anything is
        written. Written in batches: an interrupted call has replaced some, and may be repeated.
        """
        vectors = check_replacement(ids, vectors, self.dimension, self.metric)
        check_none_missing(ids, self.missing(ids))  # Chroma would pass over them
        for part in slices(len(ids), self._batch_size):
            self.collection.update(ids=list(ids[part]), embeddings=vectors[part])

    @property
    def identity(self) -> str:
        """The id that Chroma gave the collection."""
        return f"chroma:{self.collection.id}"

    def purge(self) -> str:
        """Let Chroma save its graph and clear its log, then rebuild the database of its folder.

        Chroma does the first after `sync_threshold` writes: so many stored vectors are written
        again, unchanged. A server has no call for the second.
        """
        settings = self.collection._client.get_settings()
        if settings.chroma_server_host:
            return (
                "the Chroma server keeps earlier vectors in its log and database file: stop it "
                "and run `chroma vacuum` on its folder"
            )
        if not settings.is_persistent:
            return ""
        self._write_again()
        database = Path(settings.persist_directory) / "chroma.sqlite3"
        try:
            with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
                connection.execute("VACUUM")
        except sqlite3.OperationalError:
            return (
                "Chroma's database may keep earlier vectors in free pages, since another process "
                "has been using it: run `chroma vacuum` on its folder"
            )
        return "copies and backups of the Chroma folder keep earlier vectors"

    def _write_again(self) -> None:
        """Write stored vectors again, unchanged, until Chroma has saved its graph."""
        configuration = self.collection.configuration
        settings = configuration.get("hnsw") or configuration.get("spann") or {}
        remaining = int(settings.get("sync_threshold") or 1000) + 1
        while remaining > 0:
            written = 0
            for ids in self.ids(min(self._batch_size, remaining)):
                self.replace(ids, self.vectors(ids))
                written += len(ids)
                if written >= remaining:
                    break
            if not written:
                return
            remaining -= written

    def _similarity(self, distance: float) -> float:
        """Turn Chroma's distances, 1 − cos, 1 − ⟨q, d⟩ and ‖q − d‖², into similarities."""
        return -distance if self.metric is Metric.L2 else 1 - distance
