"""How well a retriever answers: rankings against relevance, with intervals, before and after."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from nexus_integrations.data import RetrievalDataset, near_duplicates
from nexus_integrations.evaluation.metrics import (
    METRICS,
    mean_interval,
    metric_depth,
    score_rankings,
)
from nexus_integrations.evaluation.result import Comparison, Evaluation, compare
from nexus_integrations.protocols import Hits, Retriever, VectorIndex
from nexus_integrations.retrievers.framework import (
    FrameworkRetriever,
    Invokes,
    Retrieves,
)

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "check_relevant_are_stored",
    "compare",
    "evaluate",
    "mean_interval",
    "metric_depth",
    "score_rankings",
]

Search: TypeAlias = Callable[[Sequence[str], int], Hits | Sequence[Sequence[str]]]
"""A function of question texts and k, which returns hits, or ranked ids for each question."""


def evaluate(
    retriever: Retriever | Search | Retrieves | Invokes,
    dataset: RetrievalDataset,
    *,
    trained_on: RetrievalDataset | None = None,
    metrics: Sequence[str] = METRICS,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Search with the dataset's questions and score the rankings.

    `retriever` is a `Retriever`, a function from question texts and k to hits or to lists of
    document ids, best first, or a framework's: a LlamaIndex retriever or query engine, or a
    LangChain retriever (see `FrameworkRetriever`).

    Metrics are "ndcg@k", "mrr@k", "precision@k" and "recall@k"; recall counts hits over
    min(k, relevant). With `trained_on`, the training questions, the result counts the questions
    that nearly repeat one of them.

    Raises `TypeError` for what cannot search, and `ValueError` for an unknown metric, for a number
    of rankings other than that of the questions and, where the retriever has an index, for a
    relevant document that the index does not hold.
    """
    depth = max(metric_depth(metric) for metric in metrics)
    index = getattr(retriever, "index", None)
    if isinstance(index, VectorIndex):
        check_relevant_are_stored(index, dataset)
    hits = _search(retriever, list(dataset.queries.values()), depth)
    runs = dict(zip(dataset.queries, hits.ids, strict=True))
    per_query = score_rankings(runs, dataset.relevant_docs, metrics)
    return Evaluation(
        metrics={metric: float(values.mean()) for metric, values in per_query.items()},
        intervals={m: mean_interval(values, confidence, seed) for m, values in per_query.items()},
        confidence=confidence,
        query_ids=list(dataset.queries),
        per_query=per_query,
        hits=hits,
        relevant=list(dataset.relevant_docs.values()),
        documents=len(index) if isinstance(index, VectorIndex) else 0,
        fingerprint=getattr(getattr(retriever, "encoder", None), "fingerprint", ""),
        questions_sha256=_questions_hash(dataset),
        repeated=None if trained_on is None else len(near_duplicates(trained_on, dataset)),
    )


def check_relevant_are_stored(index: VectorIndex, *datasets: RetrievalDataset) -> None:
    """Raise `ValueError`, naming query and document, for a relevant id that is not in the index."""
    asked = {d for data in datasets for found in data.relevant_docs.values() for d in found}
    missing = index.missing(list(asked))
    if not missing:
        return
    for data in datasets:
        for query, found in data.relevant_docs.items():
            for document in found:
                if document in missing:
                    raise ValueError(
                        f"document {document!r}, relevant to query {query!r}, is not in the index "
                        f"({len(missing)} such documents): index the whole corpus first"
                    )


def _search(
    retriever: Retriever | Search | Retrieves | Invokes, texts: list[str], depth: int
) -> Hits:
    search: Any = retriever
    if isinstance(retriever, Retriever):
        search = retriever.search
    elif isinstance(retriever, Retrieves | Invokes):
        search = FrameworkRetriever(retriever).search
    if not callable(search):
        raise TypeError(
            f"a {type(retriever).__name__} cannot search: give a Retriever, such as "
            "DenseRetriever(index, encoder), one of LlamaIndex or LangChain, or a function from "
            "question texts and k to ids"
        )
    found = search(texts, depth)
    # A passage that a list names twice counts once, where it stands first.
    hits = (
        found
        if isinstance(found, Hits)
        else Hits.ranked([list(dict.fromkeys(ids))[:depth] for ids in found])
    )
    if len(hits.ids) != len(texts):
        raise ValueError(
            f"the retriever returned {len(hits.ids)} rankings for {len(texts)} questions"
        )
    return hits


def _questions_hash(dataset: RetrievalDataset) -> str:
    content = json.dumps([dataset.queries, dataset.relevant_docs])
    return hashlib.sha256(content.encode()).hexdigest()
