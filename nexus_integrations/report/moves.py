"""The map of what a nudge moved, and the hashes of what was saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nexus_integrations.files import sha256_of
from nexus_integrations.nudge.result import MOVED, lengths_of_moves
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.protocols import Floats, VectorIndex

_ARROWS = 400  # more than these hide one another
_BACKGROUND = 1_500


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
        distances = lengths_of_moves(state.base, targets)
        rows = np.flatnonzero(distances > MOVED)
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
