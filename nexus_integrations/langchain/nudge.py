"""NUDGE for the vectors of a LangChain vector store."""

from collections.abc import Sequence
from pathlib import Path

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import Field, InstanceOf

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.frameworks.foreign import ForeignEncoder
from nexus_integrations.frameworks.postprocessor import Postprocessor
from nexus_integrations.langchain.data import Pairs, as_dataset
from nexus_integrations.langchain.embedding import NexusEmbeddings
from nexus_integrations.langchain.index import Source, open_index
from nexus_integrations.langchain.passages import id_of
from nexus_integrations.nudge import NudgeConfig
from nexus_integrations.protocols import Encoder, VectorIndex


class NudgePostprocessor(Postprocessor[Source], BaseDocumentCompressor):
    """Move the stored vectors of one store towards the questions that its documents answer.

    The ids of documents in the datasets are their ids in the store. Applying again starts from the
    base vectors, not from moved ones.

    Stores that cannot be written (read-only, quantised, managed) are served at query time:
    `apply()` without a store keeps the moved vectors in the state, and this object, used as a
    reranker, scores by them what the store found. With 100 candidates that kept 97-98 % of the gain
    in the store, with 50 69-93 %, with 10 16-25 %: below 50 it warns. Where the store itself is
    nudged, it returns what was found as it is.
    """

    embeddings: InstanceOf[Embeddings] = Field(exclude=True, repr=False)

    def __init__(
        self,
        train: RetrievalDataset | QADataset | Pairs,
        dev: RetrievalDataset | QADataset | Pairs | None = None,
        *,
        embeddings: Embeddings,
        config: NudgeConfig | None = None,
        state_dir: str | Path | None = None,
        top_n: int | None = None,
    ) -> None:
        """Take the datasets and the embedding model that filled the store and queries it.

        Any embedding model fits. What undoes a nudge is kept in `state_dir`, from where another
        process can undo it too, or as long as this object when that is None.

        For a store that cannot be written: `nudge.apply()`, then
        `ContextualCompressionRetriever(base_compressor=nudge, base_retriever=...)` over a retriever
        with `search_kwargs={"k": 100}`, with `top_n=10`.
        """
        held_out = None if dev is None else as_dataset(dev)
        super().__init__(
            as_dataset(train), held_out, config, state_dir, top_n, embeddings=embeddings
        )

    def open_index(self, source: Source) -> VectorIndex:
        """Return the vectors of a vector store, or a `VectorIndex`, by document id."""
        return open_index(source)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Rank retrieved documents by the vectors of a nudge that is kept for query time.

        The cosine is in a ranked document's metadata, as `relevance_score`. Documents need the ids
        by which the datasets know them.
        """
        rows = self._rescored(
            query,
            [id_of(document) for document in documents],
            [document.page_content for document in documents],
        )
        return [
            documents[row]
            if score is None
            else documents[row].model_copy(
                update={"metadata": {**documents[row].metadata, "relevance_score": score}}
            )
            for row, score in rows
        ]

    @property
    def encoder(self) -> Encoder:
        """The embedding model's encoder."""
        return self._encoder_of(self.embeddings, encoder_of)


def encoder_of(embeddings: Embeddings) -> Encoder:
    """Return an embedding model's encoder, or an `Encoder` over a foreign model."""
    if isinstance(embeddings, NexusEmbeddings):
        return embeddings.encoder
    return through(embeddings)


def through(embeddings: Embeddings) -> ForeignEncoder:
    """Return an `Encoder` that embeds by the model's own methods, with its cache and its events."""
    own = embeddings.encoder if isinstance(embeddings, NexusEmbeddings) else None
    return ForeignEncoder(
        embeddings,
        vars(embeddings),
        embeddings.embed_query,
        embeddings.embed_documents,
        None if own is None else own.dimension,
    )
