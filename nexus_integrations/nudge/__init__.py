"""NUDGE: move stored document vectors towards the questions they answer, reversibly."""

from nexus_integrations.nudge.apply import (
    NudgeConfig,
    NudgeResult,
    choose_gamma_again,
    nudge_index,
)
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.state import NudgeState

__all__ = [
    "NudgeConfig",
    "NudgeResult",
    "NudgeState",
    "StateFolder",
    "choose_gamma_again",
    "nudge_index",
]
