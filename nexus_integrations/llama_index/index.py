"""The vectors of LlamaIndex's stores as a `VectorIndex`, each over the store's native handle."""

from collections.abc import Callable
from typing import Any, TypeAlias

from llama_index.core import VectorStoreIndex
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from nexus_integrations.frameworks.mapping import MappingIndex
from nexus_integrations.protocols import Metric, VectorIndex

Source: TypeAlias = VectorStoreIndex | BasePydanticVectorStore | VectorIndex
"""What holds vectors: an index, a vector store, or a `VectorIndex` of one's own."""


def open_index(source: Source) -> VectorIndex:
    """Return the stored vectors of an index or a vector store, under their node ids.

    The metric is the one by which the store itself ranks. What is a `VectorIndex` already is
    returned as it is. A `FaissVectorStore` knows no node ids, so its `VectorStoreIndex` is needed;
    changes to it are kept by persisting it again.

    Raises `NotImplementedError` for a store that is not among `SimpleVectorStore`,
    `FaissVectorStore`, `FaissMapVectorStore`, `ChromaVectorStore`, `QdrantVectorStore`,
    `LanceDBVectorStore`, `PGVectorStore` and `MilvusVectorStore`, or whose settings rule it out.
    """
    index, store = None, source
    if isinstance(source, VectorStoreIndex):
        index, store = source, source.vector_store
    if isinstance(store, SimpleVectorStore):
        return MappingIndex(store.data.embedding_dict)
    # By name: a store's package is imported where one of its objects comes from it, nowhere else.
    for class_ in type(store).__mro__:
        if class_.__module__.startswith("llama_index."):
            if class_.__name__ == "FaissVectorStore":
                return _faiss(store, index)
            if class_.__name__ in _OPENERS:
                return _OPENERS[class_.__name__](store)
    if isinstance(store, VectorIndex):
        return store
    raise NotImplementedError(
        f"the vectors of a {type(store).__name__} cannot be replaced from here: use a "
        f"SimpleVectorStore, FaissVectorStore, {', '.join(_OPENERS)}, or give a VectorIndex over "
        "the store's native handle (nexus_integrations.index)"
    )


def _faiss(store: Any, index: VectorStoreIndex | None) -> VectorIndex:
    from nexus_integrations.index.faiss import FaissIndex

    if index is None:
        raise NotImplementedError(
            "a FaissVectorStore does not know which vector is which node's: give the "
            "VectorStoreIndex over it, or use a FaissMapVectorStore"
        )
    nodes = index.index_struct.nodes_dict
    return FaissIndex(store.client, {int(number): id_ for number, id_ in nodes.items()})


def _faiss_map(store: Any) -> VectorIndex:
    from nexus_integrations.index.faiss import FaissIndex

    return FaissIndex(store.client, store._faiss_id_to_node_id_map)


def _chroma(store: Any) -> VectorIndex:
    from nexus_integrations.index.chroma import ChromaIndex

    return ChromaIndex(store.client)


def _qdrant(store: Any) -> VectorIndex:
    from nexus_integrations.index.qdrant import QdrantIndex

    if store.client is None:
        raise NotImplementedError(
            "this QdrantVectorStore has an asynchronous client alone: make one with `client`"
        )
    return QdrantIndex(store.client, store.collection_name, store.dense_vector_name)


def _lancedb(store: Any) -> VectorIndex:
    from nexus_integrations.index.lancedb import LanceDBIndex

    # Its queries name no metric: that of the vector index or L2, as LanceDBIndex reads it.
    return LanceDBIndex(store.table, "id", store.vector_column_name)


def _postgres(store: Any) -> VectorIndex:
    from nexus_integrations.frameworks.postgres import open_postgres

    store._initialize()  # as its own add and query do; without it there is no engine
    table = store._table_class.__tablename__
    # Its queries always order by the cosine distance, whatever index the table has.
    return open_postgres(
        store._engine, table, "node_id", "embedding", Metric.COSINE, schema=store.schema_name
    )


def _milvus(store: Any) -> VectorIndex:
    from nexus_integrations.index.milvus import MilvusIndex

    return MilvusIndex(store.client, store.collection_name, "id", store.embedding_field)


_OPENERS: dict[str, Callable[[Any], VectorIndex]] = {
    "FaissMapVectorStore": _faiss_map,
    "ChromaVectorStore": _chroma,
    "QdrantVectorStore": _qdrant,
    "LanceDBVectorStore": _lancedb,
    "PGVectorStore": _postgres,
    "MilvusVectorStore": _milvus,
}
