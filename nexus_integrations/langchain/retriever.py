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

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.frameworks.retriever import StoreSearch, Words, tune_store, words_of
from nexus_integrations.langchain.data import Pairs, as_dataset
from nexus_integrations.langchain.embedding import NexusEmbeddings
from nexus_integrations.langchain.index import open_index
from nexus_integrations.langchain.nudge import encoder_of, through
from nexus_integrations.langchain.passages import DocumentPassages
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.result import ENCODER, TuneResult


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
    lexical: InstanceOf[LexicalIndex] | str | Path | None = Field(
        exclude=True,
        repr=False,
        description="The words of the same documents (see `index_words`), or their folder; None "
        "searches by vectors alone.",
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
    _words: Words | None = PrivateAttr(default=None)
    _result: TuneResult | None = PrivateAttr(default=None)
    _search: StoreSearch[Document] | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Name the words; nothing is opened."""
        self._words = None if self.lexical is None else Words(self.lexical)

    @property
    def result(self) -> TuneResult | None:
        """What `tune` did, or found in a folder by `load`; it does not travel in a pickle."""
        return self._result

    @classmethod
    def tune(
        cls,
        store: VectorStore,
        train: RetrievalDataset | QADataset | Pairs,
        dev: RetrievalDataset | QADataset | Pairs | None = None,
        config: TuneConfig | None = None,
        *,
        embeddings: Embeddings | None = None,
        lexical: LexicalIndex | None = None,
        folder: str | Path | None = None,
        test: RetrievalDataset | QADataset | Pairs | None = None,
        **settings: Any,
    ) -> "NexusRetriever":
        """Fit heads, NUDGE, learned words and the weight to questions; return the retriever.

        Each is kept only where it helps questions that did not choose it: `retriever.result` tells,
        and undoes it. Without `lexical` the words are the store's own texts. In `folder` lies what
        undoes the tuning and, for `NexusEmbeddings`, all that `load` opens again. Raises what
        `open_index` and `nexus_integrations.tune` raise.
        """
        embeddings = _embeddings_of(store, embeddings)
        result = tune_store(
            open_index(store),
            encoder_of(embeddings),
            DocumentPassages(store),
            as_dataset(train),
            None if dev is None else as_dataset(dev),
            config,
            lexical=lexical,
            folder=folder,
            test=None if test is None else as_dataset(test),
        )
        return cls._of(result, store, embeddings, folder, settings)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        store: VectorStore,
        *,
        embeddings: NexusEmbeddings | None = None,
        **settings: Any,
    ) -> "NexusRetriever":
        """Open what `tune` saved to `folder`, over the store that it tuned.

        `embeddings` says how the tuned model runs. Raises what `TuneResult.load` raises.
        """
        result = TuneResult.load(folder, open_index(store))
        return cls._of(result, store, embeddings or NexusEmbeddings(), folder, settings)

    @classmethod
    def _of(
        cls,
        result: TuneResult,
        store: VectorStore,
        embeddings: Embeddings,
        folder: str | Path | None,
        settings: dict[str, Any],
    ) -> "NexusRetriever":
        if isinstance(embeddings, NexusEmbeddings) and isinstance(result.encoder, DendriticEncoder):
            saved = None if folder is None else Path(folder) / ENCODER
            embeddings = embeddings.with_encoder(result.encoder, saved)
        made = cls(
            vectorstore=store,
            lexical=result.lexical,
            weight=result.weight,
            embeddings=embeddings,
            **settings,
        )
        made._result = result
        return made

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        embeddings = _embeddings_of(self.vectorstore, self.embeddings)
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
        private = {**state["__pydantic_private__"], "_search": None, "_result": None}
        return {**state, "__dict__": fields, "__pydantic_private__": private}


def _embeddings_of(store: VectorStore, given: Embeddings | None) -> Embeddings:
    embeddings = given or store.embeddings
    if embeddings is None:
        raise ValueError(
            f"a {type(store).__name__} names no embedding model: give it as `embeddings`"
        )
    return embeddings


def index_words(
    store: VectorStore, folder: str | Path | None = None, *, language: str | None = None
) -> LexicalIndex:
    """Return the words of all documents of a store, as `LexicalIndex(folder, language=language)`.

    Documents that `folder` holds already keep the questions that they answered. Raises what
    `open_index` and `LexicalIndex` raise.
    """
    return words_of(open_index(store), DocumentPassages(store), folder, language)
