"""What training and nudging leave on disk beside their results, for a report and a model card.

Numbers and hashes: no text, no ids.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.types import Floats

if TYPE_CHECKING:
    from nexus_integrations.nudge.apply import NudgeReport
    from nexus_integrations.training.fit import Epoch
    from nexus_integrations.training.recipe import FinetuneResult

MOVED = 1e-6
"""As in `nudge.apply`: below this share of its length a vector has not moved."""

Record = TypeVar("Record", "TrainingRecord", "NudgeRecord")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How heads were trained: a `FinetuneResult` without its encoder.

    `FinetuneResult.save` keeps it as `training.json` in the encoder's folder.
    """

    side: str
    dendrites: int
    metric: str
    baseline_score: float
    score: float
    gamma: float | None
    dev_source: str
    dropped: int
    seconds: float
    embedding_seconds: float
    fingerprint: str
    document_fingerprint: str
    history: "list[Epoch]" = field(repr=False)

    @classmethod
    def of(cls, result: "FinetuneResult") -> "TrainingRecord":
        """Take over what a report shows."""
        query, document = result.encoder.query_head, result.encoder.document_head
        return cls(
            side="query" if document is None else "both" if query is document else "each",
            dendrites=max((h.dendrites for h in (query, document) if h is not None), default=0),
            metric=result.metric,
            baseline_score=result.baseline_score,
            score=result.score,
            gamma=result.gamma,
            dev_source=result.dev_source,
            dropped=result.dropped,
            seconds=result.seconds,
            embedding_seconds=result.embedding_seconds,
            fingerprint=result.encoder.fingerprint,
            document_fingerprint=result.encoder.document_fingerprint,
            history=list(result.history),
        )

    def save(self, folder: str | Path) -> None:
        """Write `training.json` into `folder`: numbers and hashes."""
        _write(self, Path(folder) / "training.json")

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingRecord | None":
        """Read what `save` wrote, None where it did not; raises `ValueError` when damaged."""
        return _read(cls, Path(folder) / "training.json", _training)


@dataclass(frozen=True, kw_only=True)
class NudgeRecord:
    """What a nudge did: a `NudgeReport` without its state.

    `nexus nudge` keeps it as `nudge.json` in the state's folder. A record made of a state alone has
    no curve and no gain, and `chosen_by` is empty: the state does not tell.
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
    def of(cls, report: "NudgeReport", fingerprint: str) -> "NudgeRecord":
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
        """Write `nudge.json` into `folder`: numbers and a hash."""
        _write(self, Path(folder) / "nudge.json")

    @classmethod
    def load(cls, folder: str | Path) -> "NudgeRecord | None":
        """Read what `save` wrote, None where it did not; raises `ValueError` when damaged."""
        return _read(cls, Path(folder) / "nudge.json", _nudge)


def lengths_of_moves(base: Floats, moved: Floats) -> Floats:
    """Return the distances, (n,), between rows, (n, dimension), for a base of length one."""
    apart = np.linalg.norm(moved - base, axis=1)
    return np.asarray(apart / np.linalg.norm(base, axis=1), dtype=np.float32)


def _write(record: TrainingRecord | NudgeRecord, path: Path) -> None:
    content = asdict(record)
    if isinstance(record, NudgeRecord):
        content["curve"] = [[gamma, value] for gamma, value in record.curve.items()]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)  # whole or not at all


def _read(cls: type[Record], path: Path, parsed: Callable[[Any], Record]) -> Record | None:
    if not path.exists():
        return None
    try:
        return parsed(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def _training(content: dict[str, Any]) -> TrainingRecord:
    from nexus_integrations.training.fit import Epoch  # which brings PyTorch

    history = [Epoch(**epoch) for epoch in content.pop("history")]
    return TrainingRecord(history=history, **content)


def _nudge(content: dict[str, Any]) -> NudgeRecord:
    curve = {float(gamma): float(value) for gamma, value in content.pop("curve")}
    interval = content.pop("interval")
    return NudgeRecord(
        curve=curve, interval=None if interval is None else (interval[0], interval[1]), **content
    )
