"""Questions and answers as LangChain has them: pairs of a question and documents."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from langchain_core.documents import Document

from nexus_integrations.data import QADataset, RetrievalDataset

Pairs: TypeAlias = Iterable[tuple[str, Document | str | Sequence[Document | str]]]


def as_dataset(
    dataset: RetrievalDataset | QADataset | Pairs, documents: Iterable[Document] = ()
) -> RetrievalDataset:
    """Return the dataset itself, or make one of (question, answer) pairs.

    An answer is a `Document`, the id of one of `documents`, or a list of these. Documents go by the
    ids that the vector store knows them by. Raises what `RetrievalDataset` raises.
    """
    if isinstance(dataset, RetrievalDataset):
        return dataset
    if isinstance(dataset, Iterable):
        return RetrievalDataset.from_langchain(dataset, documents)
    return RetrievalDataset.from_llama_index(dataset)
