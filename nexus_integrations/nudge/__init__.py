"""NUDGE: move stored document vectors towards the questions they answer, reversibly."""

from nexus_integrations.nudge.apply import choose_gamma_again, nudge_index
from nexus_integrations.nudge.config import NudgeConfig
from nexus_integrations.nudge.life import Forgotten, StateFolder
from nexus_integrations.nudge.result import NudgeResult
from nexus_integrations.nudge.state import NudgeState

__all__ = [
    "Forgotten",
    "NudgeConfig",
    "NudgeResult",
    "NudgeState",
    "StateFolder",
    "choose_gamma_again",
    "nudge_index",
]
