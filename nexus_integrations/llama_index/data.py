"""Questions and answers as LlamaIndex has them: datasets, and nodes."""

from collections.abc import Iterable, Sequence

from llama_index.core.schema import BaseNode, MetadataMode

from nexus_integrations.data import QADataset, RetrievalDataset


def as_dataset(dataset: RetrievalDataset | QADataset) -> RetrievalDataset:
    """Return the dataset itself, or LlamaIndex's `EmbeddingQAFinetuneDataset` taken over.

    Raises `TypeError` for anything else, and what `RetrievalDataset` raises.
    """
    if isinstance(dataset, RetrievalDataset):
        return dataset
    if not all(hasattr(dataset, name) for name in ("queries", "corpus", "relevant_docs")):
        raise TypeError(
            f"expected a RetrievalDataset or an EmbeddingQAFinetuneDataset, got a "
            f"{type(dataset).__name__}"
        )
    return RetrievalDataset.from_llama_index(dataset)


def dataset_from_nodes(
    pairs: Iterable[tuple[str, str | Sequence[str]]], nodes: Iterable[BaseNode]
) -> RetrievalDataset:
    """Join (question, node id or ids) pairs and the nodes of an index.

    The corpus holds each node's text as an embedding model sees it, metadata included. Equal
    questions become one query with the answers of all.
    """
    answers: dict[str, list[str]] = {}
    for question, found in pairs:
        answers.setdefault(question, []).extend([found] if isinstance(found, str) else found)
    numbered = {f"q{number}": question for number, question in enumerate(answers)}
    return RetrievalDataset(
        queries=numbered,
        corpus={node.node_id: node.get_content(MetadataMode.EMBED) for node in nodes},
        relevant_docs={id_: answers[question] for id_, question in numbered.items()},
    )
