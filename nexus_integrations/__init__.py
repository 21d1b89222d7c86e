"""Make a private retrieval index answer better, on the machine where it lives.

Names are imported on first use, so that a program pays only for what it uses.
"""

from typing import TYPE_CHECKING

from nexus_integrations.extras import lazily

if TYPE_CHECKING:
    from nexus_integrations.data import RetrievalDataset, SimilarityDataset
    from nexus_integrations.dendrite import DendriticHead
    from nexus_integrations.encoder import DendriticEncoder
    from nexus_integrations.evaluation import Comparison, Evaluation, compare, evaluate
    from nexus_integrations.nudge.apply import NudgeConfig, NudgeReport, nudge_index
    from nexus_integrations.report import Report
    from nexus_integrations.training.curve import learning_curve
    from nexus_integrations.training.recipe import FinetuneConfig, FinetuneResult, finetune
    from nexus_integrations.types import Encoder, Metric, VectorIndex

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "evaluation",
    "DendriticEncoder": "encoder",
    "DendriticHead": "dendrite",
    "Encoder": "types",
    "Evaluation": "evaluation",
    "FinetuneConfig": "training.recipe",
    "FinetuneResult": "training.recipe",
    "Metric": "types",
    "NudgeConfig": "nudge.apply",
    "NudgeReport": "nudge.apply",
    "Report": "report",
    "RetrievalDataset": "data",
    "SimilarityDataset": "data",
    "VectorIndex": "types",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "finetune": "training.recipe",
    "learning_curve": "training.curve",
    "nudge_index": "nudge.apply",
}

__all__ = [
    "Comparison",
    "DendriticEncoder",
    "DendriticHead",
    "Encoder",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneResult",
    "Metric",
    "NudgeConfig",
    "NudgeReport",
    "Report",
    "RetrievalDataset",
    "SimilarityDataset",
    "VectorIndex",
    "compare",
    "evaluate",
    "finetune",
    "learning_curve",
    "nudge_index",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
