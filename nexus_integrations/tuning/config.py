"""The settings of `tune`."""

import math
from dataclasses import dataclass, field

from nexus_integrations.evaluation import metric_depth
from nexus_integrations.training.config import FinetuneConfig

# fmt: off
WEIGHTS: tuple[float, ...] = (
    0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0, math.inf,
)
# fmt: on
"""The grid of weights: vectors alone at 0, words alone at infinity."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What `tune` tries. Raises `ValueError` on construction for values outside their range.

    `heads` says how query heads are trained, by default one linear head; None trains none. `nudge`,
    `questions` and `words` say whether passages' vectors are moved, whether passages learn the
    words of questions, and whether words are used at all; `language` is that of words that `tune`
    indexes itself, by default English. The weight of the words is chosen among `weights`. Heads are
    judged without `refit`, which trains the kept ones once more on all questions.

    Each stage is judged by `metric` on questions that did not choose it: in `folds` folds over all
    questions, drawn with `seed` (`split_by="document"` keeps questions that share a passage in one
    fold, which tells how passages fare that nobody asked about yet), or on the dev questions alone
    where those are at least `enough`. A stage is kept when its mean gain is positive; words beside
    vectors, when the lower bound of the gain's interval at `confidence` is.
    """

    heads: FinetuneConfig | None = field(
        default_factory=lambda: FinetuneConfig(dendrites=0, refit=True)
    )
    nudge: bool = True
    words: bool = True
    questions: bool = True
    language: str | None = None
    weights: tuple[float, ...] = WEIGHTS
    metric: str = "ndcg@10"
    folds: int = 3
    enough: int = 1000
    split_by: str = "query"
    confidence: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        metric_depth(self.metric)  # raises for an unknown metric
        if self.heads is not None and (
            self.heads.heads not in (None, "query") or self.heads.backbone != "frozen"
        ):
            raise ValueError(
                "tune keeps the stored vectors valid: heads need heads='query' and "
                "backbone='frozen'; run `finetune` first for others, and embed the corpus anew"
            )
        if self.questions and not self.words:
            raise ValueError("questions=True needs words=True: passages learn words")
        if self.words and not self.weights:
            raise ValueError("weights is empty: give at least one to choose from")
        if any(not weight >= 0 for weight in self.weights):
            raise ValueError(f"weights must be at least 0, got {self.weights}")
        if self.split_by not in ("query", "document"):
            raise ValueError(f"split_by must be 'query' or 'document', not {self.split_by!r}")
        if self.folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, not {self.folds}")
        if self.enough < 1:
            raise ValueError(f"enough must be at least 1, not {self.enough}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie in 0 < c < 1, not {self.confidence}")
