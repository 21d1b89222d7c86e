"""What a nudge leaves beside its state, for a report: numbers and hashes, no text, no ids."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nexus_integrations.files import write_json
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.protocols import Floats

if TYPE_CHECKING:
    from nexus_integrations.nudge.apply import NudgeResult

MOVED = 1e-6
"""As in `nudge.apply`: below this share of its length a vector has not moved."""


@dataclass(frozen=True, kw_only=True)
class NudgeRecord:
    """What a nudge did: a `NudgeResult` without its state.

    `nexus nudge apply` keeps it as `nudge.json` in the state's folder. A record made of a state
    alone has no curve and no gain, and `chosen_by` is empty: the state does not tell.
    """

    gamma: float
    variant: str
    metric: str
    chosen_by: str
    queries: int
    touched: int
    moved: int
    gain: float | None
    interval: tuple[float, float] | None
    written: bool
    approximate: bool
    fingerprint: str
    curve: dict[float, float] = field(repr=False)

    @classmethod
    def of(cls, report: "NudgeResult", fingerprint: str) -> "NudgeRecord":
        """Take over what a report shows; `fingerprint` is that of the nudge's encoder."""
        return cls(
            gamma=report.gamma,
            variant=report.variant,
            metric=report.metric,
            chosen_by=report.chosen_by,
            queries=report.queries,
            touched=report.touched,
            moved=report.moved,
            gain=report.gain,
            interval=report.interval,
            written=report.written,
            approximate=report.approximate,
            fingerprint=fingerprint,
            curve=dict(report.curve),
        )

    @classmethod
    def of_state(cls, state: NudgeState, record: "NudgeRecord | None" = None) -> "NudgeRecord":
        """Tell what is nudged now; `record` tells how γ was chosen, unless it was chosen anew."""
        how = record if record is not None and record.gamma == state.gamma else None
        return cls(
            gamma=state.gamma,
            variant=state.variant,
            metric="" if how is None else how.metric,
            chosen_by="" if how is None else how.chosen_by,
            queries=len(state.query_ids),
            touched=len({row for found in state.answers for row in found}),
            moved=int((lengths_of_moves(state.base, state.targets()) > MOVED).sum()),
            gain=None if how is None else how.gain,
            interval=None if how is None else how.interval,
            written=True,
            approximate=how is not None and how.approximate,
            fingerprint=state.fingerprint,
            curve={} if how is None else how.curve,
        )

    def save(self, folder: str | Path) -> None:
        """Write `nudge.json` into `folder`: numbers and hashes."""
        content = asdict(self)
        content["curve"] = [[gamma, value] for gamma, value in self.curve.items()]
        write_json(Path(folder) / "nudge.json", content)

    @classmethod
    def load(cls, folder: str | Path) -> "NudgeRecord | None":
        """Read what `save` wrote, None where it did not; raises `ValueError` when damaged."""
        path = Path(folder) / "nudge.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            curve = {float(gamma): float(value) for gamma, value in content.pop("curve")}
            interval = content.pop("interval")
            return cls(
                curve=curve,
                interval=None if interval is None else (interval[0], interval[1]),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None


def lengths_of_moves(base: Floats, moved: Floats) -> Floats:
    """Return the distances, (n,), between rows, (n, dimension), for a base of length one."""
    apart = np.linalg.norm(moved - base, axis=1)
    return np.asarray(apart / np.linalg.norm(base, axis=1), dtype=np.float32)
