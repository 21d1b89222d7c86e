"""The nodes of LlamaIndex's stores, and which of them a metadata filter keeps."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores import MetadataFilters, VectorStoreQuery

from nexus_integrations.frameworks.passages import Passages

Kept: TypeAlias = Callable[[Any, list[str], MetadataFilters], set[str]]


class NodePassages(Passages[BaseNode]):
    """The nodes of a `VectorStoreIndex`, from its docstore or from a store that holds texts."""

    def __init__(self, index: VectorStoreIndex) -> None:
        self._index = index
        self._store: Any = index.vector_store

    def items(self, ids: Sequence[str]) -> dict[str, BaseNode]:
        """Return those of the nodes that are stored, by id."""
        if not ids:
            return {}
        if not self._store.stores_text:
            nodes = self._index.docstore.get_nodes(list(ids), raise_error=False)
        elif hasattr(self._store, "vector_column_name"):  # LanceDB's quotes ids as if columns
            nodes = self._store.get_nodes(where=_among(ids))
        else:
            nodes = self._store.get_nodes(node_ids=list(ids))
        return {node.node_id: node for node in nodes}

    def text(self, item: BaseNode) -> str:
        """Return the node's text as an embedding model sees it, metadata included."""
        return item.get_content(MetadataMode.EMBED)

    def near(self, query: list[float], k: int, filters: MetadataFilters) -> list[str]:
        """Return the ids of the k nearest nodes that the filters keep, best first."""
        self._kept_by()
        asked = VectorStoreQuery(query_embedding=query, similarity_top_k=k, filters=filters)
        try:
            found = self._store.query(asked)
        except Warning:  # LanceDB's for no result
            return []
        return list(found.ids or [])[:k]

    def kept(self, ids: list[str], filters: MetadataFilters) -> set[str]:
        """Return those of the nodes that the filters keep."""
        return self._kept_by()(self._store, ids, filters)

    def _kept_by(self) -> Kept:
        for class_ in type(self._store).__mro__:
            if class_.__module__.startswith("llama_index.") and class_.__name__ in _KEPT:
                return _KEPT[class_.__name__]
        raise NotImplementedError(
            f"metadata filters over vectors and words need a store among {', '.join(_KEPT)}, not a "
            f"{type(self._store).__name__}: leave `filters` out, or move the nodes to one of these"
        )


def _simple(store: Any, ids: list[str], filters: MetadataFilters) -> set[str]:
    dimension = len(next(iter(store.data.embedding_dict.values()), ()))
    asked = VectorStoreQuery(
        query_embedding=[1.0] * dimension,
        similarity_top_k=len(ids),
        node_ids=ids,
        filters=filters,
    )
    return set(store.query(asked).ids)


def _nodes(store: Any, ids: list[str], filters: MetadataFilters) -> set[str]:
    return {node.node_id for node in store.get_nodes(node_ids=ids, filters=filters)}


def _qdrant(store: Any, ids: list[str], filters: MetadataFilters) -> set[str]:
    # Its get_nodes joins ids to a filter of alternatives by OR; its queries join them by AND.
    asked = VectorStoreQuery(node_ids=ids, filters=filters)
    points, _ = store.client.scroll(
        store.collection_name,
        scroll_filter=store._build_query_filter(asked),
        limit=len(ids),
        with_payload=False,
    )
    return {str(point.id) for point in points}


def _lancedb(store: Any, ids: list[str], filters: MetadataFilters) -> set[str]:
    from llama_index.vector_stores.lancedb.base import _to_lance_filter

    # Its get_nodes drops the filter where ids are given.
    where = f"({_to_lance_filter(filters, store._metadata_keys)}) AND {_among(ids)}"
    rows = store.table.search().where(where).select(["id"]).limit(len(ids)).to_list()
    return {row["id"] for row in rows}


def _among(ids: Sequence[str]) -> str:
    return "id IN (" + ", ".join("'" + id_.replace("'", "''") + "'" for id_ in ids) + ")"


# Stores whose filters are tested here; another's might let through what it should not.
_KEPT: dict[str, Kept] = {
    "SimpleVectorStore": _simple,
    "ChromaVectorStore": _nodes,
    "QdrantVectorStore": _qdrant,
    "LanceDBVectorStore": _lancedb,
    "PGVectorStore": _nodes,
}
