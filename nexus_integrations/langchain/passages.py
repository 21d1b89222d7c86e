"""The documents of LangChain's stores, and which of them a metadata filter keeps."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from nexus_integrations.frameworks.passages import Passages
from nexus_integrations.langchain.index import class_names

Kept: TypeAlias = Callable[[Any, list[str], Any], set[str]]


class DocumentPassages(Passages[Document]):
    """The documents of a vector store, with filters as the store itself takes them."""

    def __init__(self, store: VectorStore) -> None:
        self._store: Any = store

    def items(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return those of the documents that are stored, by id."""
        if not ids:
            return {}
        if "langchain_chroma.Chroma" in class_names(self._store):
            return _chroma_items(self._store, ids)
        return {id_of(document): document for document in self._store.get_by_ids(list(ids))}

    def text(self, item: Document) -> str:
        """Return the document's text."""
        return item.page_content

    def near(self, query: list[float], k: int, filters: Any) -> list[str]:
        """Return the ids of the k nearest documents that the filter keeps, best first."""
        self._kept_by()
        if isinstance(self._store, InMemoryVectorStore):
            rows = self._store._similarity_search_with_score_by_vector(query, k, filters)
            return [id_of(document) for document, *_ in rows]
        found = self._store.similarity_search_by_vector(query, k=k, filter=filters)
        return [id_of(document) for document in found]

    def kept(self, ids: list[str], filters: Any) -> set[str]:
        """Return those of the documents that the filter keeps."""
        return self._kept_by()(self._store, ids, filters)

    def _kept_by(self) -> Kept:
        for name in class_names(self._store):
            if name in _KEPT:
                return _KEPT[name]
        raise NotImplementedError(
            f"metadata filters over vectors and words need a store among {', '.join(_KEPT)}, not a "
            f"{class_names(self._store)[0]}: leave `filter` out, or move the documents to one of "
            "these"
        )


def id_of(document: Document) -> str:
    """Return a document's id, which `QdrantVectorStore` puts among the metadata; "" for none."""
    return str(document.id or document.metadata.get("_id") or "")


def _chroma_items(store: Any, ids: Sequence[str]) -> dict[str, Document]:
    """Return documents; `Chroma.get_by_ids` fails for those without metadata."""
    found = store.get(ids=list(ids))
    columns = (found["ids"], found["documents"], found["metadatas"])
    return {
        id_: Document(id=id_, page_content=text or "", metadata=notes or {})
        for id_, text, notes in zip(*columns, strict=True)
    }


def _in_memory(store: InMemoryVectorStore, ids: list[str], filters: Any) -> set[str]:
    return {str(document.id) for document in store.get_by_ids(ids) if filters(document)}


def _chroma(store: Any, ids: list[str], filters: Any) -> set[str]:
    return set(store.get(ids=ids, where=filters, include=[])["ids"])


def _qdrant(store: Any, ids: list[str], filters: Any) -> set[str]:
    from qdrant_client.models import Filter, HasIdCondition

    points, _ = store.client.scroll(
        store.collection_name,
        scroll_filter=Filter(must=[HasIdCondition(has_id=list(ids)), filters]),
        limit=len(ids),
        with_payload=False,
    )
    return {str(point.id) for point in points}


def _postgres(store: Any, ids: list[str], filters: Any) -> set[str]:
    from sqlalchemy import text

    inner = store._PGVectorStore__vs  # the store proper, asynchronous
    clause, values = inner._create_filter_clause(filters)
    named = {f"id_{number}": id_ for number, id_ in enumerate(ids)}
    places = ", ".join(f":{name}" for name in named)
    statement = (
        f'SELECT "{inner.id_column}" FROM "{inner.schema_name}"."{inner.table_name}" '
        f'WHERE ({clause}) AND "{inner.id_column}"::text IN ({places})'
    )

    async def run() -> set[str]:
        async with inner.engine.connect() as connection:
            rows = await connection.execute(text(statement), {**values, **named})
            return {str(row[0]) for row in rows.fetchall()}

    kept: set[str] = store._engine._run_as_sync(run())
    return kept


def _pgvector(store: Any, ids: list[str], filters: Any) -> set[str]:
    if not store.use_jsonb:
        raise NotImplementedError("filters over vectors and words need a PGVector with use_jsonb")
    with store._make_sync_session() as session:
        row = store.EmbeddingStore
        asked = session.query(row.id).filter(
            row.collection_id == store.get_collection(session).uuid,
            row.id.in_(ids),
            store._create_filter_clause(filters),
        )
        return {str(id_) for (id_,) in asked.all()}


# Stores whose filters are tested here; another's might let through what it should not.
_KEPT: dict[str, Kept] = {
    "langchain_core.InMemoryVectorStore": _in_memory,
    "langchain_chroma.Chroma": _chroma,
    "langchain_qdrant.QdrantVectorStore": _qdrant,
    "langchain_postgres.PGVectorStore": _postgres,
    "langchain_postgres.PGVector": _pgvector,
}
