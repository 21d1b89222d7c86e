"""What a store holds of a nudge: whose vectors they are, and whether it is the store at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nexus_integrations.nudge.state import NudgeState, content_hashes
from nexus_integrations.protocols import Floats, Metric, VectorIndex

UNIT = 1e-3
"""How far a vector may be from length one where the index does not normalise by itself."""

# How far a stored vector may be from one that was written: stores keep float32, some in other
# units or after normalising once more.
_SAME = 1e-4
_SAMPLE = 100  # documents that tell a store from others


def identity_of(index: VectorIndex) -> str:
    """Return what tells the index's store from others, empty where the store has no such thing."""
    return str(getattr(index, "identity", "") or "")


def marked(index: VectorIndex) -> str:
    """Return the store's identity, giving it one where it can hold a note."""
    mark = getattr(index, "mark", None)
    return identity_of(index) if mark is None else str(mark())


def belongs(state: NudgeState, index: VectorIndex) -> bool:
    """Tell whether the index is the one that `state` nudged, by some of the vectors moved there."""
    sample = state.with_documents(range(min(_SAMPLE, len(state.document_ids))))
    targets = sample.targets()
    moved = np.flatnonzero(~same_rows(sample.base, targets)).tolist()
    if not moved:
        return True
    present = present_rows(sample.document_ids, index, moved)
    stored = index.vectors([sample.document_ids[row] for row in present])
    return bool(same_rows(stored, targets[present]).any())


def restore(state: NudgeState, index: VectorIndex) -> int:
    """Write the base vectors of documents that hold their target; return how many now hold them.

    A document with another vector than its base or its target was embedded anew since.
    """
    ours, _ = ours_among(state, index, range(len(state.base)), state.targets())
    index.replace([state.document_ids[row] for row in ours], state.base[ours])
    return len(ours)


@dataclass(frozen=True)
class Refresh:
    """What a refresh does: rows that stay, rows that are written again, and counts."""

    kept: list[int]
    again: list[int]
    targets: Floats
    stored: Floats
    counts: dict[str, int]


def plan_refresh(
    state: NudgeState, index: VectorIndex, corpus: Mapping[str, str] | None
) -> Refresh:
    """Compare what the store holds, and the texts of `corpus`, with the state."""
    present = present_rows(state.document_ids, index, range(len(state.base)))
    counts = {"deleted": len(state.document_ids) - len(present), "changed": 0, "moved": 0}
    targets, stored = state.targets(), state.base.copy()
    stored[present] = index.vectors([state.document_ids[row] for row in present])
    is_base, is_target = same_rows(stored, state.base), same_rows(stored, targets)
    kept: list[int] = []
    again: list[int] = []
    for row in present:
        id_ = state.document_ids[row]
        if corpus is not None and id_ in corpus and state.content_sha256[row]:
            changed = content_hashes([corpus[id_]])[0] != state.content_sha256[row]
        else:
            changed = not (is_base[row] or is_target[row])
        if changed:
            counts["changed"] += 1
            if is_target[row]:  # its text changed, its vector did not
                targets[row] = state.base[row]
                again.append(row)
            continue
        kept.append(row)
        if not is_target[row]:
            again.append(row)
            counts["moved"] += 1
    return Refresh(kept, again, targets, stored, counts)


def ours_among(
    state: NudgeState, index: VectorIndex, rows: Sequence[int], targets: Floats
) -> tuple[list[int], list[int]]:
    """Part rows into those whose stored vector this state knows, and the others.

    Known are the base, the target and what the store held before the write that is under way.
    Documents that the store does not hold are among the others.
    """
    present = present_rows(state.document_ids, index, rows)
    stored = index.vectors([state.document_ids[row] for row in present])
    known = same_rows(stored, targets[present]) | same_rows(stored, state.base[present])
    if state.previous is not None:
        known |= same_rows(stored, state.previous[present])
    ours = [row for row, own in zip(present, known.tolist(), strict=True) if own]
    return ours, [row for row in rows if row not in set(ours)]


def check_unit(ids: Sequence[str], vectors: Floats, metric: Metric) -> None:
    """Raise `ValueError`, which names the worst id, for vectors, (n, dimension), off length one.

    NUDGE is derived for unit vectors; under the cosine their length does not matter.
    """
    if metric is Metric.COSINE:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    worst = int(np.abs(lengths - 1).argmax())
    if abs(lengths[worst] - 1) > UNIT:
        raise ValueError(
            f"the vector of document {ids[worst]!r} has length {lengths[worst]:.3f}: NUDGE on an "
            f"index that ranks by the {metric} needs vectors of length one; store normalised "
            "vectors"
        )


def present_rows(ids: Sequence[str], index: VectorIndex, rows: Sequence[int]) -> list[int]:
    """Return which of the rows name documents that the index holds."""
    missing = index.missing([ids[row] for row in rows])
    return [row for row in rows if ids[row] not in missing]


def same_rows(stored: Floats, written: Floats) -> NDArray[np.bool_]:
    """Tell which rows, (n, dimension), the store gives back as they were written: bool (n,)."""
    apart = np.linalg.norm(stored - written, axis=1)
    same: NDArray[np.bool_] = apart <= _SAME * np.linalg.norm(written, axis=1)
    return same
