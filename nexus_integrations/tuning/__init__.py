"""The whole job in one call: heads, NUDGE, words that passages learn, and the weight between."""

from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.result import Stage, TuneResult
from nexus_integrations.tuning.tune import tune

__all__ = ["Stage", "TuneConfig", "TuneResult", "tune"]
