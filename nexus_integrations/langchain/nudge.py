"""NUDGE for the vectors of a LangChain vector store."""

from pathlib import Path

from langchain_core.embeddings import Embeddings

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.frameworks.foreign import ForeignEncoder
from nexus_integrations.frameworks.postprocessor import Postprocessor
from nexus_integrations.langchain.data import Pairs, as_dataset
from nexus_integrations.langchain.embedding import NexusEmbeddings
from nexus_integrations.langchain.index import Source, open_index
from nexus_integrations.nudge.apply import NudgeConfig
from nexus_integrations.protocols import Encoder, VectorIndex


class NudgePostprocessor(Postprocessor[Source]):
    """Move the stored vectors of one store towards the questions that its documents answer.

    The ids of documents in the datasets are their ids in the store. Applying again starts from the
    base vectors, not from moved ones.
    """

    def __init__(
        self,
        train: RetrievalDataset | QADataset | Pairs,
        dev: RetrievalDataset | QADataset | Pairs | None = None,
        *,
        embeddings: Embeddings,
        config: NudgeConfig | None = None,
        state_dir: str | Path | None = None,
    ) -> None:
        """Take the datasets and the embedding model that filled the store and queries it.

        Any embedding model fits. What undoes a nudge is kept in `state_dir`, from where another
        process can undo it too, or as long as this object when that is None.
        """
        super().__init__(
            as_dataset(train), None if dev is None else as_dataset(dev), config, state_dir
        )
        self.embeddings = embeddings

    def open_index(self, source: Source) -> VectorIndex:
        """Return the vectors of a vector store, or a `VectorIndex`, by document id."""
        return open_index(source)

    @property
    def encoder(self) -> Encoder:
        """The embedding model's encoder."""
        return self._encoder_of(self.embeddings, encoder_of)


def encoder_of(embeddings: Embeddings) -> Encoder:
    """Return an embedding model's encoder, or an `Encoder` over a foreign model."""
    if isinstance(embeddings, NexusEmbeddings):
        return embeddings.encoder
    return ForeignEncoder(
        embeddings, vars(embeddings), embeddings.embed_query, embeddings.embed_documents
    )
