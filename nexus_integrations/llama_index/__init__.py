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
    from nexus_integrations.llama_index.retriever import NexusRetriever, index_words

__all__ = [
    "NexusEmbedding",
    "NexusFinetuneEngine",
    "NexusRetriever",
    "NudgePostprocessor",
    "as_dataset",
    "dataset_from_nodes",
    "index_words",
    "open_index",
]

__getattr__ = lazily(
    __name__,
    {
        "NexusEmbedding": "embedding",
        "NexusFinetuneEngine": "finetune",
        "NexusRetriever": "retriever",
        "NudgePostprocessor": "nudge",
        "as_dataset": "data",
        "dataset_from_nodes": "data",
        "index_words": "retriever",
        "open_index": "index",
    },
)
