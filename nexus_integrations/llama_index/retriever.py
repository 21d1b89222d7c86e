"""Vectors and words as a LlamaIndex retriever, over the index that the user has."""

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.frameworks.retriever import StoreSearch, Words, tune_store, words_of
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.llama_index.data import as_dataset
from nexus_integrations.llama_index.embedding import NexusEmbedding
from nexus_integrations.llama_index.index import open_index
from nexus_integrations.llama_index.nudge import encoder_of, through
from nexus_integrations.llama_index.passages import NodePassages
from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.result import ENCODER, TuneResult


class NexusRetriever(BaseRetriever):
    """Find nodes by their vectors and by their words, in the index as it stands.

    A node's score is the cosine of its vector and the question's, plus `weight` times its BM25 as a
    share of the best BM25 for the question. Metadata filters hold for both sides: the store itself
    judges the nodes that words name. It serves wherever LlamaIndex takes a retriever.
    """

    def __init__(
        self,
        index: VectorStoreIndex,
        lexical: LexicalIndex | str | Path | None,
        *,
        weight: float = 1.0,
        embed_model: BaseEmbedding | None = None,
        similarity_top_k: int = 10,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> None:
        """Join an index and the words of the same nodes (see `index_words`), or their folder.

        None searches by vectors alone. `weight` is that of the words: at 0 they are not asked, at
        infinity the vectors are not. `embed_model` embeds the questions; by default the index's own
        does. `kwargs` are those of LlamaIndex's `BaseRetriever`. The first retrieval raises what
        `open_index`, `LexicalIndex` and `HybridRetriever` raise, and `NotImplementedError` for
        filters over a store that applies none.
        """
        super().__init__(**kwargs)
        self.index = index
        self.weight = weight
        self.embed_model = embed_model or index._embed_model
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.result: TuneResult | None = None
        """What `tune` did, or found in a folder by `load`; it does not travel in a pickle."""
        self._words = None if lexical is None else Words(lexical)
        self._search: StoreSearch[Any] | None = None

    @classmethod
    def tune(
        cls,
        index: VectorStoreIndex,
        train: RetrievalDataset | QADataset,
        dev: RetrievalDataset | QADataset | None = None,
        config: TuneConfig | None = None,
        *,
        embed_model: BaseEmbedding | None = None,
        lexical: LexicalIndex | None = None,
        folder: str | Path | None = None,
        test: RetrievalDataset | QADataset | None = None,
        **settings: Any,
    ) -> "NexusRetriever":
        """Fit heads, NUDGE, learned words and the weight to questions; return the retriever.

        Each is kept only where it helps questions that did not choose it: `retriever.result` tells,
        and undoes it. Without `lexical` the words are the store's own texts. In `folder` lies what
        undoes the tuning and, for a `NexusEmbedding`, all that `load` opens again. Raises what
        `open_index` and `nexus_integrations.tune` raise.
        """
        embed_model = embed_model or index._embed_model
        result = tune_store(
            open_index(index),
            encoder_of(embed_model),
            NodePassages(index),
            as_dataset(train),
            None if dev is None else as_dataset(dev),
            config,
            lexical=lexical,
            folder=folder,
            test=None if test is None else as_dataset(test),
        )
        return cls._of(result, index, embed_model, folder, settings)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        index: VectorStoreIndex,
        *,
        embed_model: NexusEmbedding | None = None,
        **settings: Any,
    ) -> "NexusRetriever":
        """Open what `tune` saved to `folder`, over the index that it tuned.

        `embed_model` says how the tuned model runs. Raises what `TuneResult.load` raises.
        """
        result = TuneResult.load(folder, open_index(index))
        return cls._of(result, index, embed_model or NexusEmbedding(), folder, settings)

    @classmethod
    def _of(
        cls,
        result: TuneResult,
        index: VectorStoreIndex,
        embed_model: BaseEmbedding,
        folder: str | Path | None,
        settings: dict[str, Any],
    ) -> "NexusRetriever":
        if isinstance(embed_model, NexusEmbedding) and isinstance(result.encoder, DendriticEncoder):
            saved = None if folder is None else Path(folder) / ENCODER
            embed_model = embed_model.with_encoder(result.encoder, saved)
        weight = result.weight
        made = cls(index, result.lexical, weight=weight, embed_model=embed_model, **settings)
        made.result = result
        return made

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        settings = (self.index, self.embed_model, self.weight)
        if self._search is None or not self._search.is_of(settings):
            self._search = StoreSearch(
                open_index(self.index),
                through(self.embed_model),
                self._words,
                NodePassages(self.index),
                settings,
            )
        filters = self.filters if self.filters and self.filters.filters else None
        found = self._search.find(query_bundle.query_str, self.similarity_top_k, filters)
        return [NodeWithScore(node=node, score=match.score) for node, match in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_search": None, "result": None}  # made anew where it is unpickled


def index_words(
    index: VectorStoreIndex, folder: str | Path | None = None, *, language: str | None = None
) -> LexicalIndex:
    """Return the words of all nodes of an index, as `LexicalIndex(folder, language=language)`.

    The texts are those that the embedding model saw. Nodes that `folder` holds already keep the
    questions that they answered. Raises what `open_index` and `LexicalIndex` raise.
    """
    return words_of(open_index(index), NodePassages(index), folder, language)
