"""The life of a nudged index: apply, observe, forget, refresh, undo, each of them durable.

The order is always the same: the state is on disk before the store is written, what is written to
the store follows from the state alone, and writing it twice equals writing it once. So whatever
stops a process, the next operation on the folder finishes what was begun.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nexus_integrations.index.checks import check_vectors
from nexus_integrations.nudge.state import NudgeState, Observation, StateFiles, content_hashes
from nexus_integrations.protocols import Floats, Metric, VectorIndex

# How far a stored vector may be from one that was written: stores keep float32, some in other
# units or after normalising once more.
_SAME = 1e-4
# How far a question's vector may be from length one, and a stored one where the index does not
# normalise by itself.
_UNIT = 1e-3
_SAMPLE = 100  # documents that tell a store from others


class StateFolder:
    """Where a nudge's state is kept: a folder, or memory when there is none.

    Every operation takes the folder's lock, which the system releases when the process dies: a
    second process or thread is refused with `RuntimeError`. In memory a second thread waits.
    Operations that get an index first finish what an interrupted one left undone.
    """

    def __init__(self, folder: str | Path | None) -> None:
        """Open `folder`, which need not exist yet; None keeps the state for this object's life.

        Raises `ValueError` for a state that is damaged or was altered.
        """
        self.folder = None if folder is None else Path(folder)
        self._files = None if self.folder is None else StateFiles(self.folder)
        self._state: NudgeState | None = None
        self._seen: object = None
        self._lock = self._new_lock()
        self._unsettled = False
        self._pending: str | None = None  # an observed document that may not have moved yet
        self._read()

    @property
    def state(self) -> NudgeState | None:
        """The state as last written, observations included; None when nothing is moved."""
        return self._state

    @property
    def settled(self) -> bool:
        """Whether the store is known to hold what the state says, no operation being cut off."""
        return not self._unsettled

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, and read what another process wrote since."""
        if self.folder is None:
            with self._lock:
                yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"another process is changing the nudge in {self.folder}, or another thread: wait "
                "until it has ended"
            ) from None
        try:
            self._read()
            if self._files is not None:
                self._files.sweep()
            yield
        finally:
            self._lock.release()

    def apply(self, state: NudgeState, targets: Floats, index: VectorIndex) -> None:
        """Record `state`, write the targets to the store, and record that it is done.

        `targets` is float32 (n_documents, dimension), by our solver `state.targets()`.
        """
        with self.locked():
            self._write(replace(state, phase="applying"))
            index.replace(state.document_ids, targets)
            self._write(replace(state, phase="applied"))

    def finish(self, index: VectorIndex) -> bool:
        """Finish an operation that was interrupted; return whether there was one."""
        with self.locked():
            state = self._state
            if state is None or not self._unsettled:
                return False
            if state.phase == "undoing":
                self.undo(index)
                return True
            if state.phase == "applied":
                return self._finish_observation(state, index)
            present = _present(state.document_ids, index)
            index.replace([state.document_ids[row] for row in present], state.targets()[present])
            self._write(_without_idle_documents(replace(state, phase="applied")))
            return True

    def undo(self, index: VectorIndex) -> int:
        """Put the base vectors back, forget the state, and return how many were put back.

        Documents that were deleted from the store since, or ingested anew with another text, are
        passed over.
        """
        with self.locked():
            if self._state is not None and self._state.phase != "undoing":
                self.finish(index)  # afterwards a vector is a target, or not ours
            if self._state is None:
                return 0
            self._write(replace(self._state, phase="undoing"))
            restored = restore(self._state, index)
            if self._files is not None:
                self._files.remove()
                self._seen = self._files.signature()
            self._state, self._unsettled, self._pending = None, False, None
            return restored

    def observe(
        self,
        index: VectorIndex,
        query: Floats,
        document_id: str,
        *,
        query_id: str,
        content: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Add one answered question and move its document; nothing else is read or solved again.

        `query` is the question's unit vector, float32 (dimension,); `fingerprint`, where given, is
        that of its encoder, which must be the nudge's. Of `content`, the document's text, a hash
        alone is kept. γ stays. Raises `ValueError` when nothing is nudged yet, the question's id is
        taken, the encoder is another or a vector does not fit or is not of length one (the
        document's may have any under the cosine), and `KeyError` for an unknown document, each
        before anything is written.
        """
        with self.locked():
            self.finish(index)
            state = self._state
            if state is None:
                raise ValueError("nothing is nudged here yet: nudge the index first, which sets γ")
            if fingerprint not in (None, state.fingerprint):
                raise ValueError(
                    "the question was encoded by another encoder than the nudge's (its fingerprint "
                    "differs): their vectors do not mix"
                )
            if query_id in state.query_ids:
                raise ValueError(f"question {query_id!r} is in the state already")
            vector = np.asarray(query, dtype=np.float32)
            if vector.shape != state.base.shape[1:] or not np.isfinite(vector).all():
                raise ValueError(
                    f"expected a finite question vector of shape {state.base.shape[1:]}, got one "
                    f"of shape {vector.shape}"
                )
            if abs(np.linalg.norm(vector) - 1) > _UNIT:  # it would weigh more or less than others
                raise ValueError(
                    f"the question's vector has length {np.linalg.norm(vector):.3f}: NUDGE sums "
                    "vectors of length one; divide it by its length"
                )
            stored = index.vectors([document_id])  # raises for an unknown document
            check_vectors([document_id], stored, Metric.COSINE)
            if document_id not in state.rows:  # one that is there was checked before it moved
                check_unit([document_id], stored, index.metric)
            observation = Observation(
                query_id=query_id,
                document_id=document_id,
                content_sha256="" if content is None else content_hashes([content])[0],
                query=vector,
                base=None if document_id in state.rows else stored[0],
            )
            state = state.with_observations([observation])
            target = state.target_of(document_id)
            if self._files is not None:
                self._files.append(observation)
                self._seen = self._files.signature()
            self._state, self._unsettled, self._pending = state, True, document_id
            index.replace([document_id], target[None])
            self._unsettled, self._pending = False, None

    def forget(self, index: VectorIndex, which: Callable[[str], bool]) -> int:
        """Remove the influence of every question whose id `which` accepts; return their number.

        Afterwards store and state are those of a nudge that never saw them, at the same γ, and the
        files hold neither their ids nor their vectors. Documents that no question is left for go
        back to their base vectors.
        """
        with self.locked():
            self.finish(index)
            state = self._state
            if state is None:
                return 0
            kept = [row for row, id_ in enumerate(state.query_ids) if not which(id_)]
            forgotten = len(state.query_ids) - len(kept)
            if not forgotten:
                return 0
            changed = {
                row
                for number in set(range(len(state.query_ids))) - set(kept)
                for row in state.answers[number]
            }
            state = state.with_queries(kept)
            self._write(replace(state, phase="applying"))
            rows = _present(state.document_ids, index, sorted(changed))
            index.replace([state.document_ids[row] for row in rows], state.targets()[rows])
            self._write(_without_idle_documents(replace(state, phase="applied")))
            return forgotten

    def refresh(
        self, index: VectorIndex, corpus: Mapping[str, str] | None = None
    ) -> dict[str, int]:
        """Bring state and store back in line after documents were deleted, changed or re-ingested.

        A document that the store no longer holds drops out of the state. So does one whose text
        changed, told by the hash of its text in `corpus`, or, without that, by a stored vector that
        is neither its base nor its target; its new vector stays, and a moved one goes back to its
        base. A document that was ingested again
        unchanged is moved again. Returns the counts "deleted", "changed" and "moved".
        """
        with self.locked():
            self.finish(index)
            state = self._state
            counts = {"deleted": 0, "changed": 0, "moved": 0}
            if state is None:
                return counts
            present = _present(state.document_ids, index)
            counts["deleted"] = len(state.document_ids) - len(present)
            stored = index.vectors([state.document_ids[row] for row in present])
            targets = state.targets()
            bases = _same(stored, state.base[present]).tolist()
            moved = _same(stored, targets[present]).tolist()
            kept: list[int] = []
            again: list[int] = []
            for row, is_base, is_target in zip(present, bases, moved, strict=True):
                id_ = state.document_ids[row]
                if corpus is not None and id_ in corpus and state.content_sha256[row]:
                    changed = content_hashes([corpus[id_]])[0] != state.content_sha256[row]
                else:
                    changed = not (is_base or is_target)
                if changed:
                    counts["changed"] += 1
                    if is_target:  # its text changed, its vector did not
                        targets[row] = state.base[row]
                        again.append(row)
                    continue
                kept.append(row)
                if not is_target:
                    again.append(row)
                    counts["moved"] += 1
            ids = [state.document_ids[row] for row in again]
            remaining = state.with_documents(kept)
            self._write(replace(remaining, phase="applying"))
            index.replace(ids, targets[again])
            self._write(replace(remaining, phase="applied"))
            return counts

    def _new_lock(self) -> Any:
        return RLock() if self.folder is None else FileLock(self.folder / ".lock")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = self._new_lock()  # a copy has its own

    def _finish_observation(self, state: NudgeState, index: VectorIndex) -> bool:
        """Move the last observed document unless it has moved; return whether it had not.

        All others have, for every observation finishes the one before it. One that was ingested
        anew since, with another text, is left to `refresh`.
        """
        id_ = self._pending
        waiting = False
        if id_ is not None and not index.missing([id_]):
            stored, target = index.vectors([id_]), state.target_of(id_)
            before = state.with_queries(range(len(state.query_ids) - 1)).target_of(id_)
            base = state.base[state.rows[id_]]
            waiting = bool(_same(stored, before[None])[0] or _same(stored, base[None])[0])
            if waiting:
                index.replace([id_], target[None])
        self._unsettled, self._pending = False, None
        return waiting

    def _write(self, state: NudgeState) -> None:
        if self._files is not None:
            self._files.write(state)
            self._seen = self._files.signature()
        self._state, self._pending = state, None
        self._unsettled = state.phase != "applied"

    def _read(self) -> None:
        """Read the files unless they are as this object last saw or wrote them."""
        if self._files is None:
            return
        seen = self._files.signature()
        while seen != self._seen:
            try:
                state, observed = self._files.read()
            except ValueError:
                # Without the lock, another process may have replaced files while they were read.
                if (now := self._files.signature()) == seen:
                    raise
                seen = now
                continue
            # The last observation on disk may be missing in the store: the process that knew is
            # gone, or is another one.
            self._state, self._pending, self._seen = state, observed, seen
            self._unsettled = state is not None and (
                state.phase != "applied" or observed is not None
            )


def check_unit(ids: Sequence[str], vectors: Floats, metric: Metric) -> None:
    """Raise `ValueError`, which names the worst id, for vectors, (n, dimension), off length one.

    NUDGE is derived for unit vectors; under the cosine their length does not matter.
    """
    if metric is Metric.COSINE:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    worst = int(np.abs(lengths - 1).argmax())
    if abs(lengths[worst] - 1) > _UNIT:
        raise ValueError(
            f"the vector of document {ids[worst]!r} has length {lengths[worst]:.3f}: NUDGE on an "
            f"index that ranks by the {metric} needs vectors of length one; store normalised "
            "vectors"
        )


def belongs(state: NudgeState, index: VectorIndex) -> bool:
    """Tell whether the index is the one that `state` nudged, by some of the vectors moved there."""
    sample = state.with_documents(range(min(_SAMPLE, len(state.document_ids))))
    targets = sample.targets()
    moved = np.flatnonzero(~_same(sample.base, targets)).tolist()
    present = _present(sample.document_ids, index, moved)
    stored = index.vectors([sample.document_ids[row] for row in present])
    return not moved or bool(_same(stored, targets[present]).any())


def restore(state: NudgeState, index: VectorIndex) -> int:
    """Write the base vectors of documents that hold their target; return how many now hold them.

    A document with another vector than its base or its target was embedded anew since.
    """
    present = _present(state.document_ids, index)
    stored = index.vectors([state.document_ids[row] for row in present])
    ours = _same(stored, state.targets()[present]) | _same(stored, state.base[present])
    rows = [row for row, own in zip(present, ours.tolist(), strict=True) if own]
    index.replace([state.document_ids[row] for row in rows], state.base[rows])
    return len(rows)


def _present(
    ids: Sequence[str], index: VectorIndex, rows: Sequence[int] | None = None
) -> list[int]:
    """Return which of the rows name documents that the index holds."""
    rows = range(len(ids)) if rows is None else rows
    missing = index.missing([ids[row] for row in rows])
    return [row for row in rows if ids[row] not in missing]


def _without_idle_documents(state: NudgeState) -> NudgeState:
    """Leave out documents that no question is left for; their base vectors are stored again."""
    return state.with_documents(sorted({row for found in state.answers for row in found}))


def _same(stored: Floats, written: Floats) -> NDArray[np.bool_]:
    """Tell which rows, (n, dimension), the store gives back as they were written: bool (n,)."""
    apart = np.linalg.norm(stored - written, axis=1)
    same: NDArray[np.bool_] = apart <= _SAME * np.linalg.norm(written, axis=1)
    return same
