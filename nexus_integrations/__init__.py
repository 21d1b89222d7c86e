"""Make a private retrieval index answer better, on the machine where it lives.

Names are imported on first use, so that a program pays only for what it uses.
"""

from typing import TYPE_CHECKING

from nexus_integrations.extras import lazily

if TYPE_CHECKING:
    from nexus_integrations.data import RetrievalDataset, SimilarityDataset
    from nexus_integrations.encoder import DendriticEncoder
    from nexus_integrations.encoder.head import DendriticHead
    from nexus_integrations.evaluation import Comparison, Evaluation, compare, evaluate
    from nexus_integrations.lexical import LexicalIndex
    from nexus_integrations.nudge import NudgeConfig, NudgeResult, nudge_index
    from nexus_integrations.protocols import Encoder, Hits, Metric, Retriever, VectorIndex
    from nexus_integrations.report import Report
    from nexus_integrations.retrievers import DenseRetriever, HybridRetriever
    from nexus_integrations.training.config import FinetuneConfig
    from nexus_integrations.training.curve import learning_curve
    from nexus_integrations.training.finetune import finetune
    from nexus_integrations.training.result import FinetuneResult
    from nexus_integrations.tuning import TuneConfig, TuneResult, tune

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "evaluation",
    "DendriticEncoder": "encoder",
    "DendriticHead": "encoder",
    "DenseRetriever": "retrievers",
    "Encoder": "protocols",
    "Evaluation": "evaluation",
    "FinetuneConfig": "training.config",
    "FinetuneResult": "training.result",
    "Hits": "protocols",
    "HybridRetriever": "retrievers",
    "LexicalIndex": "lexical",
    "Metric": "protocols",
    "NudgeConfig": "nudge.config",
    "NudgeResult": "nudge.result",
    "Report": "report",
    "RetrievalDataset": "data",
    "Retriever": "protocols",
    "SimilarityDataset": "data",
    "TuneConfig": "tuning",
    "TuneResult": "tuning",
    "VectorIndex": "protocols",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "finetune": "training.finetune",
    "learning_curve": "training.curve",
    "nudge_index": "nudge.apply",
    "tune": "tuning",
}

__all__ = [
    "Comparison",
    "DendriticEncoder",
    "DendriticHead",
    "DenseRetriever",
    "Encoder",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneResult",
    "Hits",
    "HybridRetriever",
    "LexicalIndex",
    "Metric",
    "NudgeConfig",
    "NudgeResult",
    "Report",
    "RetrievalDataset",
    "Retriever",
    "SimilarityDataset",
    "TuneConfig",
    "TuneResult",
    "VectorIndex",
    "compare",
    "evaluate",
    "finetune",
    "learning_curve",
    "nudge_index",
    "tune",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
