"""NUDGE for the vectors of a LlamaIndex index."""

from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.foreign import ForeignEncoder
from nexus_integrations.llama_index.data import as_dataset
from nexus_integrations.llama_index.embedding import NexusEmbedding
from nexus_integrations.llama_index.index import open_index
from nexus_integrations.nudge.apply import NudgeConfig
from nexus_integrations.nudge.postprocessor import Postprocessor
from nexus_integrations.types import Encoder, VectorIndex

# Fields of embedding models that change no vector, and secrets, which are renewed.
_NO_IDENTITY = {"api_key", "device", "embed_batch_size", "max_retries", "num_workers", "timeout"}


class NudgePostprocessor(Postprocessor[VectorStoreIndex | BasePydanticVectorStore | VectorIndex]):
    """Move the stored vectors of one index towards the questions that its nodes answer.

    The ids of documents in the datasets are node ids. Applying again starts from the base vectors,
    not from moved ones.
    """

    def __init__(
        self,
        train: RetrievalDataset | QADataset,
        dev: RetrievalDataset | QADataset | None = None,
        *,
        embed_model: BaseEmbedding,
        config: NudgeConfig | None = None,
        state_dir: str | Path | None = None,
    ) -> None:
        """Take the datasets and the embedding model that filled the index and queries it.

        Any embedding model fits. What undoes a nudge is kept in `state_dir`, from where another
        process can undo it too, or as long as this object when that is None.
        """
        super().__init__(
            as_dataset(train), None if dev is None else as_dataset(dev), config, state_dir
        )
        self.embed_model = embed_model

    def open_index(
        self, source: VectorStoreIndex | BasePydanticVectorStore | VectorIndex
    ) -> VectorIndex:
        """Return the vectors of an index, a vector store, or a `VectorIndex`, by node id."""
        return open_index(source)

    @property
    def encoder(self) -> Encoder:
        """The embedding model's encoder."""
        return encoder_of(self.embed_model)


def encoder_of(embed_model: BaseEmbedding) -> Encoder:
    """Return an embedding model's encoder, or an `Encoder` over a foreign model."""
    if isinstance(embed_model, NexusEmbedding):
        return embed_model.encoder
    settings = {
        name: value
        for name, value in embed_model.to_dict().items()
        if name not in _NO_IDENTITY and isinstance(value, (str, int, float))
    }
    return ForeignEncoder(
        embed_model.get_query_embedding,
        embed_model.get_text_embedding_batch,
        identity=[type(embed_model).__qualname__, settings],
    )
