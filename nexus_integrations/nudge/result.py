"""What nudging did, and what forgetting did: numbers that save themselves and print readably."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.state import NudgeState, Variant
from nexus_integrations.nudge.state_files import RESULT
from nexus_integrations.protocols import Floats, VectorIndex
from nexus_integrations.records import NOT_SAVED, Record

MOVED = 1e-6
"""Below this share of its length a vector has not moved: float32 cannot tell."""


@dataclass(frozen=True, kw_only=True)
class NudgeResult(Record):
    """What a nudge did.

    `curve` maps each γ tried to the `metric` on the queries that chose it (`chosen_by`: "dev",
    "cross-validation", "nudge-ft", or "fixed", where the curve is empty). `touched` documents
    answer a training query, `moved` of them are stored elsewhere now; `distances`, float32 (n,),
    are the Euclidean distances between old and new vectors, for a base of length one. `dropped`
    counts queries without a relevant document, which the datasets left out, `forgotten` those that
    were forgotten in this state and not learned again.

    `gain` is the mean paired difference in the metric, with its `interval`, of the judging queries
    at a γ that the others chose; None where γ was not chosen on a curve. `written` tells whether
    the nudge was kept. `approximate` tells that the index may have missed near documents when γ was
    chosen; similarities of documents that move are exact in any case. `fingerprint` is that of the
    encoder.
    """

    gamma: float
    variant: Variant
    metric: str
    chosen_by: str
    curve: dict[float, float] = field(repr=False)
    queries: int
    touched: int
    moved: int
    dropped: int = 0
    forgotten: int = 0
    gain: float | None
    interval: tuple[float, float] | None
    written: bool
    approximate: bool
    seconds: float = 0.0
    fingerprint: str = ""
    distances: Floats = field(
        default_factory=lambda: np.zeros(0, np.float32),
        repr=False,
        compare=False,
        metadata=NOT_SAVED,
    )
    folder: StateFolder | None = field(default=None, repr=False, compare=False, metadata=NOT_SAVED)
    """Where the state is kept; None for a result that was read from a file."""

    @classmethod
    def of_state(cls, state: NudgeState, kept: "NudgeResult | None" = None) -> "NudgeResult":
        """Tell what is nudged now; `kept` tells how γ was chosen, unless it was chosen anew."""
        how = kept if kept is not None and kept.gamma == state.gamma else None
        distances = lengths_of_moves(state.base, state.targets())
        now = cls(
            gamma=state.gamma,
            variant=state.variant,
            metric="",
            chosen_by="",
            curve={},
            queries=len(state.query_ids),
            touched=len({row for found in state.answers for row in found}),
            moved=int((distances > MOVED).sum()),
            gain=None,
            interval=None,
            written=True,
            approximate=False,
            fingerprint=state.fingerprint,
            distances=distances,
        )
        if how is None:
            return now
        return replace(
            now,
            metric=how.metric,
            chosen_by=how.chosen_by,
            curve=how.curve,
            gain=how.gain,
            interval=how.interval,
            approximate=how.approximate,
        )

    @classmethod
    def of_folder(cls, folder: str | Path) -> "NudgeResult | None":
        """Read the `nudge.json` that `nudge_index` left in a state's folder, None without one."""
        path = Path(folder) / RESULT
        return cls.load(path) if path.exists() else None

    def undo(self, index: VectorIndex, *, force: bool = False) -> int:
        """Put the base vectors back into the index; return how many documents were restored.

        Raises `ValueError` for a result that was read from a file, and as `StateFolder.undo` does.
        """
        if self.folder is None:
            raise ValueError("this result was read from a file: undo with the StateFolder itself")
        return self.folder.undo(index, force=force)

    def __str__(self) -> str:
        """Return one line: what was done, at which γ, and what it gained."""
        moved = f"{self.moved or 'none'} of {self.touched} documents"
        done = f"{moved} moved" if self.written or not self.moved else f"dry run: {moved} to move"
        line = f"{done}, {self.queries} questions, γ = {self.gamma:g} ({self.chosen_by})"
        if self.gain is not None and self.interval is not None:
            low, high = self.interval
            line += (
                f"; {self.metric} {self.gain:+.3f} ({low:+.3f} to {high:+.3f}) on questions that "
                "did not choose γ"
            )
        if self.forgotten:
            line += f"; {self.forgotten} forgotten questions not learned again"
        if self.approximate:
            line += "; other documents as the store's approximate search finds them"
        return line


def lengths_of_moves(base: Floats, moved: Floats) -> Floats:
    """Return the distances, float32 (n,), between rows, (n, dimension), for a base of length 1."""
    apart = np.linalg.norm(moved - base, axis=1)
    return np.asarray(apart / np.linalg.norm(base, axis=1), dtype=np.float32)
