"""The package's tools as LlamaIndex knows them."""

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nexus_integrations.llama_index needs LlamaIndex: "
        'pip install "nexus-integrations[llama-index]"'
    ) from error

from nexus_integrations.llama_index.data import as_dataset, dataset_from_nodes
from nexus_integrations.llama_index.embedding import NexusEmbedding
from nexus_integrations.llama_index.finetune import NexusFinetuneEngine
from nexus_integrations.llama_index.index import open_index
from nexus_integrations.llama_index.nudge import NudgePostprocessor

__all__ = [
    "NexusEmbedding",
    "NexusFinetuneEngine",
    "NudgePostprocessor",
    "as_dataset",
    "dataset_from_nodes",
    "open_index",
]
