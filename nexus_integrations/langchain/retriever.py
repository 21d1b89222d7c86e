"""Vectors and words as a LangChain retriever, over the store that the user has."""

from pathlib import Path
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr

from nexus_integrations.frameworks.retriever import StoreSearch, Words, words_of
from nexus_integrations.langchain.index import open_index
from nexus_integrations.langchain.nudge import through
from nexus_integrations.langchain.passages import DocumentPassages
from nexus_integrations.lexical import LexicalIndex


class NexusRetriever(BaseRetriever):
    """Find documents by their vectors and by their words, in the store as it stands.

    A document's score, in its metadata as `relevance_score`, is the cosine of its vector and the
    question's, plus `weight` times its BM25 as a share of the best BM25 for the question. Metadata
    filters hold for both sides: the store itself judges the documents that words name. `k` and
    `filter` are also arguments of `invoke`.

    The first retrieval raises what `open_index`, `LexicalIndex` and `HybridRetriever` raise, and
    `NotImplementedError` for a filter over a store that applies none.
    """

    model_config = ConfigDict(extra="forbid")

    vectorstore: InstanceOf[VectorStore] = Field(repr=False, description="Holds the documents.")
    lexical: InstanceOf[LexicalIndex] | str | Path = Field(
        exclude=True,
        repr=False,
        description="The words of the same documents (see `index_words`), or their folder.",
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        description="That of the words: at 0 they are not asked, at infinity the vectors are not.",
    )
    embeddings: InstanceOf[Embeddings] | None = Field(
        default=None, repr=False, description="Embeds the questions; by default the store's own."
    )
    k: int = Field(default=10, ge=1, description="How many documents are returned.")
    filter: Any = Field(default=None, description="A metadata filter as the store takes it.")
    _words: Words = PrivateAttr()
    _search: StoreSearch[Document] | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Name the words; nothing is opened."""
        self._words = Words(self.lexical)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        embeddings = self.embeddings or self.vectorstore.embeddings
        if embeddings is None:
            raise ValueError(
                f"a {type(self.vectorstore).__name__} names no embedding model: give it as "
                "`embeddings`"
            )
        settings = (self.vectorstore, embeddings, self.weight)
        if self._search is None or not self._search.is_of(settings):
            self._search = StoreSearch(
                open_index(self.vectorstore),
                through(embeddings),
                self._words,
                DocumentPassages(self.vectorstore),
                settings,
            )
        chosen = self.filter if filter is None else filter
        found = self._search.find(query, self.k if k is None else k, chosen)
        return [
            document.model_copy(
                update={
                    "id": match.id,
                    "metadata": {**document.metadata, "relevance_score": match.score},
                }
            )
            for document, match in found
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **kwargs
        )

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        fields = {**state["__dict__"], "lexical": None}  # as `_words`
        private = {**state["__pydantic_private__"], "_search": None}
        return {**state, "__dict__": fields, "__pydantic_private__": private}


def index_words(
    store: VectorStore, folder: str | Path | None = None, *, language: str | None = None
) -> LexicalIndex:
    """Return the words of all documents of a store, as `LexicalIndex(folder, language=language)`.

    Documents that `folder` holds already keep the questions that they answered. Raises what
    `open_index` and `LexicalIndex` raise.
    """
    return words_of(open_index(store), DocumentPassages(store), folder, language)
