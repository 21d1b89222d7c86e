"""NUDGE: move stored document vectors towards the questions they answer, reversibly."""

from nexus_integrations.nudge.apply import NudgeConfig, NudgeReport, nudge_index
from nexus_integrations.nudge.state import NudgeState, StateFolder

__all__ = ["NudgeConfig", "NudgeReport", "NudgeState", "StateFolder", "nudge_index"]
