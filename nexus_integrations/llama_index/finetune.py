"""Fine-tuning with the verbs of LlamaIndex's fine-tune engines."""

from pathlib import Path

from nexus_integrations.data import QADataset, RetrievalDataset
from nexus_integrations.llama_index.data import as_dataset
from nexus_integrations.llama_index.embedding import NexusEmbedding
from nexus_integrations.llama_index.index import Source, open_index
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.result import FinetuneResult


class NexusFinetuneEngine:
    """Train dendritic heads for an embedding model on questions and the passages that answer them.

    The default `heads="query"` of `FinetuneConfig` leaves the vectors of an index valid: the tuned
    model queries it as it is. Build the index first and give it as `index`, and the corpus is
    embedded once.
    """

    def __init__(
        self,
        train: RetrievalDataset | QADataset,
        dev: RetrievalDataset | QADataset | None = None,
        embed_model: NexusEmbedding | None = None,
        config: FinetuneConfig | None = None,
        model_output_path: str | Path | None = None,
        *,
        index: Source | None = None,
    ) -> None:
        """Take the datasets, also LlamaIndex's `EmbeddingQAFinetuneDataset`; nothing runs yet.

        `embed_model` is the default `NexusEmbedding` where not given, and is not changed. Without
        `dev` a part of `train` is held out. With `model_output_path` the tuned encoder is saved to
        that folder. With `index`, which `embed_model` filled and no nudge has moved, the passages'
        vectors are read from there and not embedded again. Raises `TypeError` for an `embed_model`
        of another class: heads are trained on a local encoder.
        """
        if embed_model is not None and not isinstance(embed_model, NexusEmbedding):
            raise TypeError(
                f"embed_model is a {type(embed_model).__name__}: heads are trained for a "
                "NexusEmbedding; give NexusEmbedding(model=...) of the same model"
            )
        self.train = as_dataset(train)
        self.dev = None if dev is None else as_dataset(dev)
        self.embed_model = embed_model or NexusEmbedding()
        self.config = config
        self.model_output_path = model_output_path
        self.index = index
        self._tuned: NexusEmbedding | None = None

    def finetune(self) -> FinetuneResult:
        """Train, and save where a path was given; return the encoder and its dev scores.

        Raises what `open_index`, `nexus_integrations.finetune` and `FinetuneResult.save` raise;
        when saving fails, the model in memory is kept.
        """
        before = self.embed_model
        index = None if self.index is None else open_index(self.index)
        result = finetune(before.encoder, self.train, self.dev, self.config, index=index)
        self._tuned = before.with_encoder(result.encoder)
        if self.model_output_path is not None:
            result.save(self.model_output_path)
            self._tuned = before.with_encoder(result.encoder, self.model_output_path)
        return result

    def get_finetuned_model(self) -> NexusEmbedding:
        """Return the tuned embedding model; raises `RuntimeError` before `finetune`."""
        if self._tuned is None:
            raise RuntimeError("nothing is tuned yet: call finetune() first")
        return self._tuned
