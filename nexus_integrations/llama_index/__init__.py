"""The package's tools as LlamaIndex knows them, imported on first use."""

from typing import TYPE_CHECKING

from nexus_integrations.extras import lazily

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "nexus_integrations.llama_index needs LlamaIndex: "
        'pip install "nexus-integrations[llama-index]"'
    ) from error

if TYPE_CHECKING:
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

__getattr__ = lazily(
    __name__,
    {
        "NexusEmbedding": "embedding",
        "NexusFinetuneEngine": "finetune",
        "NudgePostprocessor": "nudge",
        "as_dataset": "data",
        "dataset_from_nodes": "data",
        "open_index": "index",
    },
)
