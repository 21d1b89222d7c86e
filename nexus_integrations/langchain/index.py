"""LangChain's in-memory store as a `VectorIndex`."""

from collections.abc import Iterator, MutableMapping

from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from nexus_integrations.index.mapping import MappingIndex
from nexus_integrations.types import VectorIndex


def open_index(source: VectorStore | VectorIndex) -> VectorIndex:
    """Return the stored vectors of a vector store, under their document ids.

    What is a `VectorIndex` already is returned as it is. Raises `NotImplementedError` for a store
    other than `InMemoryVectorStore`.
    """
    if isinstance(source, InMemoryVectorStore):
        return MappingIndex(_Vectors(source))
    if isinstance(source, VectorIndex):
        return source
    raise NotImplementedError(
        f"the vectors of a {type(source).__name__} cannot be replaced from here: use an "
        "InMemoryVectorStore, or give a VectorIndex over the store's native handle "
        "(nexus_integrations.index)"
    )


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
