"""The vectors of LangChain's stores as a `VectorIndex`, each over the store's native handle."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from nexus_integrations.frameworks.mapping import MappingIndex
from nexus_integrations.protocols import Floats, Hits, Metric, VectorIndex

Source: TypeAlias = VectorStore | VectorIndex
"""What holds vectors: a vector store, or a `VectorIndex` of one's own."""


def open_index(source: Source) -> VectorIndex:
    """Return the stored vectors of a vector store, under their document ids.

    The metric is the one by which the store itself ranks. What is a `VectorIndex` already is
    returned as it is. Changes to an `InMemoryVectorStore` or a `FAISS` are kept by saving it again;
    a `FAISS` that was loaded must be told `normalize_L2` anew.

    Raises `NotImplementedError` for a store that is not among `InMemoryVectorStore`, `FAISS`
    (langchain_community), `Chroma` (langchain_chroma), `QdrantVectorStore` (langchain_qdrant),
    `PGVectorStore` and `PGVector` (langchain_postgres) and `Milvus` (langchain_milvus), or whose
    settings rule it out.
    """
    if isinstance(source, InMemoryVectorStore):
        return MappingIndex(_Vectors(source))
    # By name: a store's package is imported where one of its objects comes from it, nowhere else.
    for name in class_names(source):
        if name in _OPENERS:
            return _OPENERS[name](source)
        if name == "langchain_community.LanceDB":
            raise NotImplementedError(
                "the searches of a langchain_community.LanceDB give no ids: give a LanceDBIndex "
                "over store.get_table() (nexus_integrations.index.lancedb)"
            )
    if isinstance(source, VectorIndex):
        return source
    raise NotImplementedError(
        f"the vectors of a {class_names(source)[0]} cannot be replaced from here: use an "
        f"InMemoryVectorStore, {', '.join(_OPENERS)}, or give a VectorIndex over the store's "
        "native handle (nexus_integrations.index)"
    )


def class_names(store: object) -> list[str]:
    """Return package and class of a store and its bases: classes of two packages share a name."""
    return [
        f"{class_.__module__.partition('.')[0]}.{class_.__name__}" for class_ in type(store).__mro__
    ]


class _Vectors(MutableMapping[str, list[float]]):
    """The store's vectors alone, by id; text and metadata lie beside them."""

    def __init__(self, store: InMemoryVectorStore) -> None:
        self._store = store

    def __getitem__(self, id_: str) -> list[float]:
        vector: list[float] = self._store.store[id_]["vector"]
        return vector

    def __setitem__(self, id_: str, vector: list[float]) -> None:
        self._store.store[id_]["vector"] = vector

    def __delitem__(self, id_: str) -> None:
        self._store.delete([id_])

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.store)

    def __len__(self) -> int:
        return len(self._store.store)


class _UnitRows:
    """An index whose store normalises documents and queries, and so ranks by the cosine."""

    metric = Metric.COSINE

    def __init__(self, index: VectorIndex) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Floats, k: int) -> Hits:
        hits = self._index.search(_unit(queries), k)
        if self._index.metric is Metric.DOT:
            return hits
        cosines = 1 + hits.similarities / 2  # −‖q − d‖² is 2⟨q, d⟩ − 2
        return Hits(hits.ids, cosines.astype(np.float32))

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        self._index.replace(ids, _unit(vectors))


def _unit(rows: Floats) -> Floats:
    """Return the rows at length one; of zero is left what the index raises for."""
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths == 0, 1, lengths), dtype=np.float32)


def _faiss(store: Any) -> VectorIndex:
    from nexus_integrations.index.faiss import FaissIndex

    # Its strategy COSINE builds an L2 index: the metric is the index's own.
    index = FaissIndex(store.index, store.index_to_docstore_id)
    return cast(VectorIndex, _UnitRows(index)) if store._normalize_L2 else index


def _chroma(store: Any) -> VectorIndex:
    from nexus_integrations.index.chroma import ChromaIndex

    return ChromaIndex(store._collection)


def _qdrant(store: Any) -> VectorIndex:
    from nexus_integrations.index.qdrant import QdrantIndex

    return QdrantIndex(store.client, store.collection_name, store.vector_name)


def _postgres(store: Any) -> VectorIndex:
    from nexus_integrations.frameworks.postgres import open_postgres

    inner = store._PGVectorStore__vs  # the store proper, asynchronous
    metric = {"<=>": Metric.COSINE, "<#>": Metric.DOT, "<->": Metric.L2}
    return open_postgres(
        store._engine._pool,
        inner.table_name,
        inner.id_column,
        inner.embedding_column,
        metric[inner.distance_strategy.operator],
        schema=inner.schema_name,
    )


def _pgvector(store: Any) -> VectorIndex:
    from nexus_integrations.frameworks.postgres import open_postgres

    metric = {"cosine": Metric.COSINE, "inner": Metric.DOT, "l2": Metric.L2}
    return open_postgres(
        store._engine or store._async_engine,
        "langchain_pg_embedding",
        "id",
        "embedding",
        metric[store._distance_strategy],  # a string, or an Enum that is one
        collection=store.collection_name,
    )


def _milvus(store: Any) -> VectorIndex:
    from nexus_integrations.index.milvus import MilvusIndex

    if not isinstance(store._vector_field, str):
        raise NotImplementedError(
            f"this Milvus store has the vector fields {store._vector_field}: give a MilvusIndex "
            "over store.client and the dense one (nexus_integrations.index.milvus)"
        )
    return MilvusIndex(
        store.client, store.collection_name, store._primary_field, store._vector_field
    )


_OPENERS: dict[str, Callable[[Any], VectorIndex]] = {
    "langchain_community.FAISS": _faiss,
    "langchain_chroma.Chroma": _chroma,
    "langchain_qdrant.QdrantVectorStore": _qdrant,
    "langchain_postgres.PGVectorStore": _postgres,
    "langchain_postgres.PGVector": _pgvector,
    "langchain_milvus.Milvus": _milvus,
}
