"""LlamaIndex's in-memory store as a `VectorIndex`."""

from llama_index.core import VectorStoreIndex
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from nexus_integrations.index.mapping import MappingIndex
from nexus_integrations.types import VectorIndex


def open_index(source: VectorStoreIndex | BasePydanticVectorStore | VectorIndex) -> VectorIndex:
    """Return the stored vectors of an index or a vector store, under their node ids.

    What is a `VectorIndex` already is returned as it is. Raises `NotImplementedError` for a store
    other than `SimpleVectorStore`.
    """
    store = source.vector_store if isinstance(source, VectorStoreIndex) else source
    if isinstance(store, SimpleVectorStore):
        return MappingIndex(store.data.embedding_dict)
    if isinstance(store, VectorIndex):
        return store
    raise NotImplementedError(
        f"the vectors of a {type(store).__name__} cannot be replaced from here: use a "
        "SimpleVectorStore, or give a VectorIndex over the store's native handle "
        "(nexus_integrations.index)"
    )
