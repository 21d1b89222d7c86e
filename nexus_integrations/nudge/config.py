"""How to nudge: the settings, and which of them a way of choosing γ has."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nexus_integrations.evaluation import metric_depth
from nexus_integrations.nudge.solver import GAMMAS, NUDGE_FT_GAMMAS
from nexus_integrations.nudge.state import Variant

Solver = Literal["closed-form", "nudge-ft"]
Rule = Literal["curve", "nudge-ft"]
Keep = Literal["if-better", "always"]

_JUDGING = ("keep", "confidence", "folds", "seed")


@dataclass(frozen=True, kw_only=True)
class NudgeConfig:
    """How to nudge. Raises `ValueError` on construction for what is out of range or has no effect.

    `variant` "n" turns documents and keeps their length; "m" shifts them, for indexes that rank by
    the dot product. γ bounds the move of a document: the squared distance between unit vectors
    under "n" (0 ≤ γ < 4), the distance under "m".

    γ is `gamma` where that is given. Otherwise the rule "curve" takes the γ of `gammas` (`GAMMAS`)
    with the best `metric` ("ndcg@10") on the dev questions, the smallest of equals; without dev
    questions by cross-validation over the training questions, in `folds` (5) folds drawn with
    `seed` (0). The rule "nudge-ft" is that of the reference: its own grid by recall@1 under "n",
    the exact optimum of answers ranked first under "m". `solver` "nudge-ft" runs the reference
    package in place of ours, with its own rule unless `gamma` is given; it reads the whole corpus
    and needs a dev set.

    Where γ is chosen on a curve, `keep` "if-better", the default, judges the nudge on questions
    that did not choose γ, and writes it only if their mean difference is positive; with
    `confidence` (0.9, say) only if the lower bound of its interval is. "always" writes it in any
    case. `dry_run` writes nothing.
    """

    variant: Variant = "n"
    gamma: float | None = None
    rule: Rule = "curve"
    metric: str | None = None
    gammas: tuple[float, ...] | None = None
    solver: Solver = "closed-form"
    keep: Keep | None = None
    confidence: float | None = None
    dry_run: bool = False
    folds: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("variant", self.variant, ("n", "m")),
            ("rule", self.rule, ("curve", "nudge-ft")),
            ("solver", self.solver, ("closed-form", "nudge-ft")),
            ("keep", self.keep, ("if-better", "always", None)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")
        upper = 4.0 if self.variant == "n" else np.inf
        for gamma in (*(self.gammas or ()), *(() if self.gamma is None else (self.gamma,))):
            if not 0 <= gamma < upper:
                raise ValueError(f"γ must lie in 0 ≤ γ < {upper} for this variant, not {gamma}")
        if self.gammas == ():
            raise ValueError("gammas is empty: give at least one γ to choose from")
        if self.metric is not None:
            metric_depth(self.metric)  # raises for an unknown metric
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in 0 < c < 1, not {self.confidence}")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, not {self.folds}")
        self._check_effect()

    def _check_effect(self) -> None:
        """Refuse the settings that would change nothing."""
        chosen_otherwise: tuple[str, tuple[str, ...]] | None = None
        if self.gamma is not None:
            chosen_otherwise = "gamma is given", ("metric", "gammas", *_JUDGING)
        elif self.solver == "nudge-ft":
            chosen_otherwise = 'solver="nudge-ft" chooses γ', ("metric", "gammas", *_JUDGING)
        elif self.rule == "nudge-ft":
            exact = _JUDGING if self.variant == "m" else ()
            chosen_otherwise = 'rule="nudge-ft" chooses γ by recall@1', ("metric", "gammas", *exact)
        if chosen_otherwise is not None:
            why, without = chosen_otherwise
            for name in without:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect here, since {why}: leave it out")
        if self.rule == "nudge-ft" and (self.gamma is not None or self.solver == "nudge-ft"):
            raise ValueError("rule has no effect where gamma is given or the solver is nudge-ft")
        if self.confidence is not None and self.keep == "always":
            raise ValueError('confidence has no effect with keep="always": leave one out')

    @property
    def judged_by(self) -> str:
        """The metric of the curve."""
        return "recall@1" if self.rule == "nudge-ft" else self.metric or "ndcg@10"

    @property
    def grid(self) -> tuple[float, ...]:
        """The γ that are tried, rising."""
        tried = NUDGE_FT_GAMMAS if self.rule == "nudge-ft" else self.gammas or GAMMAS
        return tuple(sorted(set(tried)))

    @property
    def splits(self) -> tuple[int, int]:
        """The number of folds, and the seed that draws them."""
        return self.folds or 5, self.seed or 0
