"""Rankings to numbers: metrics by `ir_measures` (trec_eval's C code), intervals by SciPy."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.extras import extra

with extra("nudge"):
    import ir_measures
    from ir_measures import RR, Measure, P, nDCG
    from scipy.stats import bootstrap, pearson3, skew

METRICS: tuple[str, ...] = ("ndcg@10", "mrr@10", "recall@1", "recall@5", "recall@10")
"""What `evaluate` measures unless told otherwise."""

_RESAMPLES = 9_999
_RESAMPLED = 2_000  # values at most; beyond, resampling takes seconds


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
    mean, variance and skewness that the mean of a resample has. Its bounds differ from the
    bootstrap's by less than a tenth of the standard error.
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
