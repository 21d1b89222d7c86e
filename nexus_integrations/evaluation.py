"""How well an index answers: rankings against relevance, with intervals, before and after.

Metrics are computed by `ir_measures` (trec_eval's C code) and intervals by SciPy's bootstrap.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.extras import extra
from nexus_integrations.protocols import Hits, Retriever, VectorIndex

with extra("nudge"):
    import ir_measures
    from ir_measures import RR, Measure, P, nDCG
    from scipy.stats import bootstrap, pearson3, skew

METRICS: tuple[str, ...] = ("ndcg@10", "mrr@10", "recall@1", "recall@5", "recall@10")
"""What `evaluate` reports unless told otherwise."""

_RESAMPLES = 9_999
_RESAMPLED = 2_000  # values at most; beyond, resampling takes seconds


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How one index answered a set of queries.

    `metrics` are means over the queries, in 0..1; `intervals` their bootstrap intervals at
    `confidence`; `per_query` the values of each query, float64 (n_queries,), in the order of
    `query_ids`.

    What a report shows stands in the same order: `hits` are the documents found, `relevant` the ids
    that answer each query. `documents` counts the index, `fingerprint` is the encoder's, and
    `questions_sha256` a hash of the queries and their relevant ids. An evaluation that was written
    by an earlier version lacks these five.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    query_ids: list[str] = field(repr=False)
    per_query: dict[str, NDArray[np.float64]] = field(repr=False)
    hits: Hits | None = field(default=None, repr=False)
    relevant: list[list[str]] = field(default_factory=list, repr=False)
    documents: int = 0
    fingerprint: str = ""
    questions_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference between two evaluations of the same queries, after minus before.

    `differences` are means per metric and `intervals` their bootstrap intervals at `confidence`;
    `wins`, `losses` and `ties` count the queries that got better, worse, or neither.
    """

    differences: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    wins: dict[str, int]
    losses: dict[str, int]
    ties: dict[str, int]


def evaluate(
    retriever: Retriever,
    dataset: RetrievalDataset,
    *,
    metrics: Sequence[str] = METRICS,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Search with the dataset's queries and score the rankings.

    Metrics are "ndcg@k", "mrr@k", "precision@k" and "recall@k"; recall counts hits over
    min(k, relevant). Raises `ValueError` for an unknown metric and, where the retriever has an
    index, for a relevant document that the index does not hold.
    """
    depth = max(metric_depth(metric) for metric in metrics)
    index = getattr(retriever, "index", None)
    if isinstance(index, VectorIndex):
        check_relevant_are_stored(index, dataset)
    hits = retriever.search(list(dataset.queries.values()), depth)
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
    )


def compare(before: Evaluation, after: Evaluation, *, seed: int = 0) -> Comparison:
    """Compare two evaluations query by query.

    Raises `ValueError` when they are not of the same queries and metrics.
    """
    if before.query_ids != after.query_ids or set(before.per_query) != set(after.per_query):
        raise ValueError(
            "the two evaluations are not of the same queries and metrics: evaluate both with the "
            "same dataset"
        )
    changes = {m: after.per_query[m] - before.per_query[m] for m in before.per_query}
    return Comparison(
        differences={metric: float(change.mean()) for metric, change in changes.items()},
        intervals={m: mean_interval(c, before.confidence, seed) for m, c in changes.items()},
        confidence=before.confidence,
        wins={metric: int((change > 0).sum()) for metric, change in changes.items()},
        losses={metric: int((change < 0).sum()) for metric, change in changes.items()},
        ties={metric: int((change == 0).sum()) for metric, change in changes.items()},
    )


def score_rankings(
    runs: Mapping[str, Sequence[str]],
    relevant_docs: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Return each metric's value per query, float64 (n_queries,), in the order of `runs`.

    `runs` holds the ranked document ids per query, best first, as deep as the deepest metric asks;
    `relevant_docs` holds at least one relevant id for each of them.
    """
    # Scores that fall with the rank keep the index's order: trec_eval would break ties by id.
    run = {q: {d: float(-rank) for rank, d in enumerate(ranked)} for q, ranked in runs.items()}
    qrels = {query: dict.fromkeys(relevant_docs[query], 1) for query in runs}
    wanted = {metric: _measure(metric) for metric in metrics}
    rows = {query: row for row, query in enumerate(runs)}
    columns = {str(measure): np.zeros(len(rows)) for measure in wanted.values()}
    for value in ir_measures.iter_calc(list(set(wanted.values())), qrels, run):
        columns[str(value.measure)][rows[value.query_id]] = value.value
    scores = {}
    for metric, measure in wanted.items():
        scores[metric] = columns[str(measure)]
        name, k = _parsed(metric)
        if name == "recall":  # hits = precision·k, of min(k, relevant) that could be
            possible = [min(k, len(set(relevant_docs[query]))) for query in runs]
            scores[metric] = scores[metric] * k / np.array(possible)
    return scores


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


def _questions_hash(dataset: RetrievalDataset) -> str:
    content = json.dumps([dataset.queries, dataset.relevant_docs])
    return hashlib.sha256(content.encode()).hexdigest()


def metric_depth(metric: str) -> int:
    """Return how many documents a metric looks at: 10 for "ndcg@10"."""
    return _parsed(metric)[1]


def _parsed(metric: str) -> tuple[str, int]:
    match = re.fullmatch(r"(ndcg|mrr|recall|precision)@([1-9]\d*)", metric)
    if match is None:
        raise ValueError(
            f"unknown metric {metric!r}: expected ndcg@k, mrr@k, recall@k or precision@k"
        )
    return match[1], int(match[2])


def _measure(metric: str) -> Measure:
    name, k = _parsed(metric)
    return {"ndcg": nDCG, "mrr": RR, "recall": P, "precision": P}[name] @ k


def mean_interval(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, float64 (n,).

    Above 2,000 values nothing is drawn: the interval is that of a Pearson III distribution with the
    mean, variance and skewness that the mean of a resample has. Its bounds
    differ from the bootstrap's by less than a tenth of the standard error.
    """
    if len(values) < 2 or np.ptp(values) == 0:  # nothing to resample
        return float(values.mean()), float(values.mean())
    if len(values) > _RESAMPLED:
        root = np.sqrt(len(values))
        spread = pearson3(skew(values) / root, loc=values.mean(), scale=values.std() / root)
        low, high = spread.interval(confidence)
        return float(low), float(high)
    result = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=_RESAMPLES,
        batch=max(1, 2**22 // len(values)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
