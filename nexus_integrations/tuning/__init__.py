"""The whole job in one call: heads, NUDGE, questions on passages, and the weight of words.

Names are imported on first use: what was tuned is used without PyTorch.
"""

from typing import TYPE_CHECKING

from nexus_integrations.extras import lazily

if TYPE_CHECKING:
    from nexus_integrations.tuning.config import TuneConfig
    from nexus_integrations.tuning.result import Stage, TuneRecord, TuneResult
    from nexus_integrations.tuning.stages import tune

__all__ = ["Stage", "TuneConfig", "TuneRecord", "TuneResult", "tune"]

__getattr__ = lazily(
    __name__,
    {
        "Stage": "result",
        "TuneConfig": "config",
        "TuneRecord": "result",
        "TuneResult": "result",
        "tune": "stages",
    },
)
