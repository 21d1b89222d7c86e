"""What an evaluation found, and what changed between two: as numbers, as text, as JSON."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.evaluation.metrics import mean_interval
from nexus_integrations.protocols import Hits
from nexus_integrations.records import Record


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """How one retriever answered a set of questions; `print` shows a small table.

    `metrics` are means over the questions, in 0..1; `intervals` their bootstrap intervals at
    `confidence`; `per_query` the values of each question, float64 (n_queries,), in the order of
    `query_ids`.

    In the same order, `hits` are the documents found and `relevant` the ids that answer each
    question. `documents` counts the index (0: unknown), `fingerprint` is the encoder's ("":
    unknown), and `questions_sha256` a hash of the questions and their relevant ids. `repeated`
    counts the questions that nearly repeat a training question; None where the training questions
    are not known.
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
    repeated: int | None = None

    @property
    def first(self) -> int | None:
        """How many questions found a right passage first; None where no metric tells."""
        for name, values in self.per_query.items():
            if name.startswith("mrr@") or name in ("recall@1", "precision@1", "ndcg@1"):
                return int((values == 1).sum())
        return None

    def __str__(self) -> str:
        asked = f"{len(self.query_ids):,} questions"
        lines = [asked + (f", {self.documents:,} documents" if self.documents else "")]
        lines.append(f"{'':<12}{'mean':>7}   {self.confidence:.0%} interval")
        for metric, mean in self.metrics.items():
            low, high = self.intervals[metric]
            lines.append(f"{metric:<12}{mean:>7.3f}   {low:.3f} to {high:.3f}")
        if self.first is not None:
            lines.append(f"The right passage came first for {self.first:,} of {asked}.")
        if self.repeated:
            lines.append(
                f"{self.repeated:,} of them nearly repeat a training question: they tell little of "
                "new questions."
            )
        return "\n".join(lines)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote, or `nexus evaluate --json` printed.

        Raises `ValueError`, which names file and field, for anything else.
        """
        loaded = super().load(path)
        counts = {values.shape for values in loaded.per_query.values()}
        lists = [loaded.relevant, *([] if loaded.hits is None else loaded.hits)]
        counts |= {(len(found),) for found in lists if len(found)}
        named = set(loaded.per_query) == set(loaded.metrics) == set(loaded.intervals)
        finite = all(np.isfinite(values).all() for values in loaded.per_query.values())
        if counts != {(len(loaded.query_ids),)} or not named or not finite:
            raise ValueError(f"{path} is damaged: its fields are of different questions or metrics")
        return loaded


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """The paired difference between two evaluations of the same questions, after minus before.

    `differences` are means per metric and `intervals` their bootstrap intervals at `confidence`;
    `wins`, `losses` and `ties` count the questions that got better, worse, or neither. `questions`
    counts all, and `first` those whose right passage came first, before and after (None: no metric
    tells).
    """

    differences: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    wins: dict[str, int]
    losses: dict[str, int]
    ties: dict[str, int]
    questions: int = 0
    first: tuple[int, int] | None = None

    def __str__(self) -> str:
        interval = f"{self.confidence:.0%} interval"
        lines = [f"{'':<12}{'change':>7}   {interval:<16}   better  worse  equal"]
        for metric, change in self.differences.items():
            low, high = self.intervals[metric]
            lines.append(
                f"{metric:<12}{change:>+7.3f}   {low:+.3f} to {high:+.3f}   "
                f"{self.wins[metric]:>6}{self.losses[metric]:>7}{self.ties[metric]:>7}"
            )
        return "\n".join([*lines, *([self.ranked_first] if self.ranked_first else [])])

    @property
    def ranked_first(self) -> str:
        """One sentence: for how many questions the right passage came first; "" if unknown."""
        if self.first is None:
            return ""
        before, after = self.first
        return (
            f"The right passage came first for {after:,} of {self.questions:,} questions, before "
            f"for {before:,}."
        )


def compare(before: Evaluation, after: Evaluation, *, seed: int = 0) -> Comparison:
    """Compare two evaluations question by question.

    Raises `ValueError` when they are not of the same questions and metrics.
    """
    if before.query_ids != after.query_ids or set(before.per_query) != set(after.per_query):
        raise ValueError(
            "the two evaluations are not of the same queries and metrics: evaluate both with the "
            "same dataset"
        )
    changes = {m: after.per_query[m] - before.per_query[m] for m in before.per_query}
    known = before.first is not None and after.first is not None
    return Comparison(
        differences={metric: float(change.mean()) for metric, change in changes.items()},
        intervals={m: mean_interval(c, before.confidence, seed) for m, c in changes.items()},
        confidence=before.confidence,
        wins={metric: int((change > 0).sum()) for metric, change in changes.items()},
        losses={metric: int((change < 0).sum()) for metric, change in changes.items()},
        ties={metric: int((change == 0).sum()) for metric, change in changes.items()},
        questions=len(before.query_ids),
        first=(before.first or 0, after.first or 0) if known else None,
    )
