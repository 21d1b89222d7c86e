"""Vectors and words as a LlamaIndex retriever, over the index that the user has."""

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters

from nexus_integrations.frameworks.retriever import StoreSearch, Words, words_of
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.llama_index.index import open_index
from nexus_integrations.llama_index.nudge import through
from nexus_integrations.llama_index.passages import NodePassages


class NexusRetriever(BaseRetriever):
    """Find nodes by their vectors and by their words, in the index as it stands.

    A node's score is the cosine of its vector and the question's, plus `weight` times its BM25 as a
    share of the best BM25 for the question. Metadata filters hold for both sides: the store itself
    judges the nodes that words name. It serves wherever LlamaIndex takes a retriever.
    """

    def __init__(
        self,
        index: VectorStoreIndex,
        lexical: LexicalIndex | str | Path,
        *,
        weight: float = 1.0,
        embed_model: BaseEmbedding | None = None,
        similarity_top_k: int = 10,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> None:
        """Join an index and the words of the same nodes (see `index_words`), or their folder.

        `weight` is that of the words: at 0 they are not asked, at infinity the vectors are not.
        `embed_model` embeds the questions; by default the index's own does. What `kwargs` holds is
        for LlamaIndex's `BaseRetriever`. The first retrieval raises what `open_index`,
        `LexicalIndex` and `HybridRetriever` raise, and `NotImplementedError` for filters over a
        store that applies none.
        """
        super().__init__(**kwargs)
        self.index = index
        self.weight = weight
        self.embed_model = embed_model or index._embed_model
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self._words = Words(lexical)
        self._search: StoreSearch[Any] | None = None

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
        return {**vars(self), "_search": None}  # made anew where it is unpickled


def index_words(
    index: VectorStoreIndex, folder: str | Path | None = None, *, language: str | None = None
) -> LexicalIndex:
    """Return the words of all nodes of an index, as `LexicalIndex(folder, language=language)`.

    The texts are those that the embedding model saw. Nodes that `folder` holds already keep the
    questions that they answered. Raises what `open_index` and `LexicalIndex` raise.
    """
    return words_of(open_index(index), NodePassages(index), folder, language)
