"""What is trained and judged on: questions with their passages, and sentence pairs with scores."""

from nexus_integrations.data.exports import (
    read_langsmith_examples,
    read_rag_dataset,
    read_retriever_runs,
)
from nexus_integrations.data.files import check_texts
from nexus_integrations.data.leakage import Repeat, near_duplicates
from nexus_integrations.data.questions import generate_questions
from nexus_integrations.data.retrieval import QADataset, RetrievalDataset
from nexus_integrations.data.similarity import SimilarityDataset

__all__ = [
    "QADataset",
    "Repeat",
    "RetrievalDataset",
    "SimilarityDataset",
    "check_texts",
    "generate_questions",
    "near_duplicates",
    "read_langsmith_examples",
    "read_rag_dataset",
    "read_retriever_runs",
]
