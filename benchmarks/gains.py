"""What rows of runs say: figures over seeds, over questions, and the rows they come from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.mean import Mean
from benchmarks.record import STEP, Row
from nexus_integrations.evaluation import mean_interval


def per_query(rows: Sequence[Row], stage: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return each question's nDCG@10, averaged over the rows: float64 (n_queries,)."""
    mean: np.ndarray[Any, np.dtype[np.float64]] = np.mean(
        [row["per_query"][stage] for row in rows], axis=0
    )
    return mean * STEP


def mean_of(rows: Sequence[Row], stage: str) -> Mean:
    """Return nDCG@10 on test with its interval over seeds."""
    return Mean.of([row["test"][stage]["ndcg@10"] for row in rows])


def over_seeds(rows: Sequence[Row], others: Sequence[Row], stage: str) -> Mean:
    """Return the difference to the others in nDCG@10, seed by seed."""
    known = {row["seed"]: row["test"][stage]["ndcg@10"] for row in others}
    return Mean.of(
        [row["test"][stage]["ndcg@10"] - known[row["seed"]] for row in rows if row["seed"] in known]
    )


def over_questions(
    rows: Sequence[Row], stage: str, others: Sequence[Row], other_stage: str
) -> tuple[float, tuple[float, float]]:
    """Return the difference of each question's mean over seeds, and its bootstrap interval.

    Only seeds that both have count. Rows of `others` without a seed are compared with all.
    """
    if all(row["seed"] is not None for row in others):
        shared = {row["seed"] for row in rows} & {row["seed"] for row in others}
        rows, others = ([r for r in part if r["seed"] in shared] for part in (rows, others))
    change = per_query(rows, stage) - per_query(others, other_stage)
    return float(change.mean()), mean_interval(change, 0.95, 0)


def signed(difference: tuple[float, tuple[float, float]]) -> str:
    """Return a difference and its interval as text."""
    value, (low, high) = difference
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def grouped(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows by set and recipe, in the order of their seeds.

    Of two rows of one run the one that was alone counts.
    """
    best: dict[str, Row] = {}
    for row in rows:
        if row["run"] not in best or row["alone"]:
            best[row["run"]] = row
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in sorted(best.values(), key=lambda row: row["seed"] or 0):
        groups.setdefault(row["set"], {}).setdefault(row["recipe"], []).append(row)
    return groups


def seconds_alone(rows: Sequence[Row]) -> str:
    """Return the seconds of training and nudging of the runs that were alone."""
    found = [row["seconds"] + row["nudge_seconds"] for row in rows if row["alone"]]
    return f"{np.mean(found):.1f}" if found else "–"
