"""The package's tools as LangChain knows them, imported on first use."""

from typing import TYPE_CHECKING

from nexus_integrations.extras import lazily

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError(
        'nexus_integrations.langchain needs LangChain: pip install "nexus-integrations[langchain]"'
    ) from error

if TYPE_CHECKING:
    from nexus_integrations.langchain.data import as_dataset
    from nexus_integrations.langchain.embedding import NexusEmbeddings
    from nexus_integrations.langchain.index import open_index
    from nexus_integrations.langchain.nudge import NudgePostprocessor
    from nexus_integrations.langchain.retriever import NexusRetriever, index_words

__all__ = [
    "NexusEmbeddings",
    "NexusRetriever",
    "NudgePostprocessor",
    "as_dataset",
    "index_words",
    "open_index",
]

__getattr__ = lazily(
    __name__,
    {
        "NexusEmbeddings": "embedding",
        "NexusRetriever": "retriever",
        "NudgePostprocessor": "nudge",
        "as_dataset": "data",
        "index_words": "retriever",
        "open_index": "index",
    },
)
