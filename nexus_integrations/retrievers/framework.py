"""The frameworks' own retrievers and pipelines, told by their methods: no framework is imported."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Hits


@runtime_checkable
class Retrieves(Protocol):
    """What LlamaIndex's retrievers and query engines have."""

    def retrieve(self, question: Any, /) -> Any:
        """Return nodes with scores."""
        ...


@runtime_checkable
class Invokes(Protocol):
    """What LangChain's retrievers, and all of its runnables, have."""

    def invoke(self, question: Any, /) -> Any:
        """Return documents."""
        ...


class FrameworkRetriever:
    """A LlamaIndex retriever or query engine, or a LangChain retriever, as a `Retriever`.

    So what a pipeline reranks, filters or fuses is measured as a whole. A LangChain runnable fits
    too, if it takes a question and returns documents.
    """

    def __init__(self, retriever: Retrieves | Invokes) -> None:
        """Take what has `retrieve`, as LlamaIndex has, or `invoke`, as LangChain has.

        Raises `TypeError` for anything else.
        """
        if not isinstance(retriever, Retrieves | Invokes):
            raise TypeError(
                f"a {type(retriever).__name__} is no retriever: it has neither `retrieve` "
                "(LlamaIndex) nor `invoke` (LangChain)"
            )
        self.retriever = retriever

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the first k passages that the retriever finds for each question, by their ids.

        Similarities are its own scores, NaN where it gives none. How many it finds is its own
        setting: where it never finds k, a warning says so. Raises `TypeError` for what it returns
        beside nodes and documents, and `ValueError` for documents without an id.
        """
        found = [
            self._one(text)[:k] for text in progress_bar(texts, desc="search", unit="question")
        ]
        width = max(map(len, found), default=0)
        if texts and width < k:
            warnings.warn(
                f"the retriever found at most {width} passages per question, {k} were asked for: "
                f"set its similarity_top_k, or its k, to {k}",
                UserWarning,
                stacklevel=3,
            )
        scores = np.full((len(found), width), -np.inf, dtype=np.float32)
        for row, pairs in enumerate(found):
            scores[row, : len(pairs)] = [score for _, score in pairs]
        return Hits([[id_ for id_, _ in pairs] for pairs in found], scores)

    def _one(self, text: str) -> list[tuple[str, float]]:
        if isinstance(self.retriever, Retrieves):
            # A query engine takes no bare text.
            schema = sys.modules.get("llama_index.core.schema")
            found = self.retriever.retrieve(text if schema is None else schema.QueryBundle(text))
        else:
            found = self.retriever.invoke(text)
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise TypeError(
                f"the retriever returned a {type(found).__name__}, expected a list of nodes or "
                "documents: give the part of the chain that retrieves"
            )
        pairs: dict[
            str, float
        ] = {}  # a passage that is found twice counts once, where it stands first
        for each in found:
            pairs.setdefault(_id(each), _score(each))
        return list(pairs.items())


def _id(found: Any) -> str:
    """Return the id of a LlamaIndex node with its score, or of a LangChain document."""
    if hasattr(found, "node"):
        return str(found.node.node_id)
    # LangChain's QdrantVectorStore puts it among the metadata.
    id_ = getattr(found, "id", None) or getattr(found, "metadata", {}).get("_id")
    if id_ is None:
        raise ValueError(
            f"the retriever returned a {type(found).__name__} without an id: store the documents "
            "with ids, and use a store that returns them"
        )
    return str(id_)


def _score(found: Any) -> float:
    score = getattr(found, "score", None)
    return float("nan") if score is None else float(score)
