"""What training and nudging leave for a report, and the map of what moved."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nexus_integrations.nudge.apply import NudgeReport
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.source import sha256_of
from nexus_integrations.training.fit import Epoch
from nexus_integrations.training.recipe import FinetuneResult
from nexus_integrations.types import Floats, VectorIndex

_ARROWS = 400  # more than these hide one another
_BACKGROUND = 1_500
_MOVED = 1e-6  # as in nudge.apply: below this share of its length a vector has not moved

Record = TypeVar("Record", "TrainingRecord", "NudgeRecord")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How heads were trained: a `FinetuneResult` without its encoder.

    `save` keeps it as `training.json` in the encoder's folder.
    """

    side: str
    dendrites: int
    baseline_score: float
    score: float
    gamma: float | None
    dev_source: str
    dropped: int
    seconds: float
    embedding_seconds: float
    fingerprint: str
    document_fingerprint: str
    history: list[Epoch] = field(repr=False)

    @classmethod
    def of(cls, result: FinetuneResult) -> "TrainingRecord":
        """Take over what a report shows."""
        query, document = result.encoder.query_head, result.encoder.document_head
        return cls(
            side="query" if document is None else "both" if query is document else "each",
            dendrites=max((h.dendrites for h in (query, document) if h is not None), default=0),
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

    `save` keeps it as `nudge.json` in the state's folder. A record made of a state alone has no
    curve and no gain, and `chosen_by` is empty: the state does not tell.
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
    def of(cls, report: NudgeReport, fingerprint: str) -> "NudgeRecord":
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
            moved=int((_distances(state.base, state.targets()) > _MOVED).sum()),
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


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Where documents stood and where a nudge moved them, in a plane for the eye.

    The plane is that of the first two principal components of the base vectors, scaled to length
    one; `share` is the share of their variance that it holds, in 0..1. `base` and `moved`, float32
    (n_moved, 2), and `background`, float32 (n, 2), of documents that stayed, lie in it.
    `distances`, float32 (n_moved,), are those of the whole vectors. `questions` counts what each
    document answers. Where more than 400 documents moved, `drawn` are the rows of the furthest and
    of a random choice of others. `stretch` is how many times longer than it is a move must be drawn
    to be seen.
    """

    document_ids: list[str] = field(repr=False)
    distances: Floats = field(repr=False)
    questions: list[int] = field(repr=False)
    base: Floats = field(repr=False)
    moved: Floats = field(repr=False)
    background: Floats = field(repr=False)
    drawn: list[int] = field(repr=False)
    share: float
    stretch: int

    @classmethod
    def of(cls, state: NudgeState, index: VectorIndex | None = None, *, seed: int = 0) -> "Moves":
        """Project a state's documents and, from `index`, a sample of those it does not touch."""
        rng = np.random.default_rng(seed)
        targets = state.targets()
        distances = _distances(state.base, targets)
        rows = np.flatnonzero(distances > _MOVED)
        rows = rows[np.argsort(-distances[rows], kind="stable")]  # furthest first
        length = np.linalg.norm(state.base, axis=1, keepdims=True)
        base: Floats = (state.base / length)[rows]
        moved: Floats = (targets / length)[rows]
        still = _others(index, state, rng)
        plane, middle, share = _plane(np.concatenate([base, still]))
        questions = np.bincount(
            [row for found in state.answers for row in found], minlength=len(state.base)
        )
        drawn = np.arange(len(rows))
        if len(drawn) > _ARROWS:
            rest = rng.choice(drawn[_ARROWS // 4 :], _ARROWS - _ARROWS // 4, replace=False)
            drawn = np.concatenate([drawn[: _ARROWS // 4], np.sort(rest)])
        base, moved, still = (
            ((part - middle) @ plane).astype(np.float32) for part in (base, moved, still)
        )
        return cls(
            document_ids=[state.document_ids[row] for row in rows],
            distances=distances[rows],
            questions=questions[rows].tolist(),
            base=base,
            moved=moved,
            background=still,
            drawn=drawn.tolist(),
            share=share,
            stretch=_stretch(base, moved, still),
        )


def file_hashes(folders: Sequence[str | Path]) -> dict[str, str]:
    """Return the SHA-256 of every file in the folders, by `folder/file`; locks are left out."""
    return {
        f"{Path(folder).name}/{path.relative_to(folder).as_posix()}": sha256_of(path)
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _distances(base: Floats, moved: Floats) -> Floats:
    """Return the distances, (n,), between rows, (n, dimension), for a base of length one."""
    apart = np.linalg.norm(moved - base, axis=1)
    return np.asarray(apart / np.linalg.norm(base, axis=1), dtype=np.float32)


def _others(index: VectorIndex | None, state: NudgeState, rng: np.random.Generator) -> Floats:
    """Return unit vectors of untouched documents, drawn at random: float32 (n, dimension)."""
    kept: list[str] = []
    keys = np.empty(0)
    for batch in [] if index is None else index.ids():
        kept += [id_ for id_ in batch if id_ not in state.rows]
        keys = np.concatenate([keys, rng.random(len(kept) - len(keys))])
        if len(kept) > _BACKGROUND:  # the smallest keys of all are a random choice
            least = np.sort(np.argpartition(keys, _BACKGROUND)[:_BACKGROUND])
            kept, keys = [kept[row] for row in least], keys[least]
    if index is None or not kept:
        return np.empty((0, state.base.shape[1]), dtype=np.float32)
    vectors = index.vectors(kept)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _plane(vectors: Floats) -> tuple[Floats, Floats, float]:
    """Return two principal axes, (dimension, 2), the middle, (dimension,), and the share held."""
    if not len(vectors):
        width = vectors.shape[1]
        return np.zeros((width, 2), np.float32), np.zeros(width, np.float32), 0.0
    middle = vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(vectors.T, bias=True))  # rising
    plane = axes[:, :-3:-1]  # (dimension, 2)
    # An axis has no sign of its own: its largest entry is made positive.
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    total = float(variances.sum())
    share = float(variances[-2:].sum()) / total if total > 0 else 0.0
    return plane.astype(np.float32), middle, share


def _stretch(base: Floats, moved: Floats, background: Floats) -> int:
    """Return the factor that makes the median move a twentieth of the map at most."""
    if not len(base):
        return 1
    extent = float(np.ptp(np.concatenate([base, moved, background]), axis=0).max())
    median = float(np.median(np.linalg.norm(moved - base, axis=1)))
    fits = [factor for factor in (2, 5, 10, 20, 50) if factor * median <= extent / 20]
    return max(fits, default=1)


def _write(record: TrainingRecord | NudgeRecord, path: Path) -> None:
    content = asdict(record)
    if isinstance(record, NudgeRecord):
        content["curve"] = [[gamma, value] for gamma, value in record.curve.items()]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read(cls: type[Record], path: Path, parsed: Callable[[Any], Record]) -> Record | None:
    if not path.exists():
        return None
    try:
        return parsed(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def _training(content: dict[str, Any]) -> TrainingRecord:
    history = [Epoch(**epoch) for epoch in content.pop("history")]
    return TrainingRecord(history=history, **content)


def _nudge(content: dict[str, Any]) -> NudgeRecord:
    curve = {float(gamma): float(value) for gamma, value in content.pop("curve")}
    interval = content.pop("interval")
    return NudgeRecord(
        curve=curve, interval=None if interval is None else (interval[0], interval[1]), **content
    )
