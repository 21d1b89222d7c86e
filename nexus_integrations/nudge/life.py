"""The life of a nudged index: apply, observe, forget, refresh, undo, each of them durable.

The order is always the same: the state is on disk before the store is written, what is written to
the store follows from the state alone, and writing it twice equals writing it once. So whatever
stops a process, the next operation on the folder finishes what was begun. A document whose stored
vector is neither its base nor one that this state wrote was embedded anew by another tool: no
operation overwrites it.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nexus_integrations.index.checks import check_vectors
from nexus_integrations.nudge.state import NudgeState, Observation, content_hashes
from nexus_integrations.nudge.state_files import StateFiles
from nexus_integrations.nudge.stored import (
    UNIT,
    belongs,
    check_unit,
    identity_of,
    marked,
    ours_among,
    plan_refresh,
    same_rows,
)
from nexus_integrations.protocols import Floats, Metric, VectorIndex
from nexus_integrations.records import Record

_MOST = 0.5  # the share of documents that may be passed over without a word to insist


@dataclass(frozen=True, kw_only=True)
class Forgotten(Record):
    """What forgetting did.

    `questions` were forgotten and `documents` written again; `passed_over` documents were deleted
    or embedded anew since, so that nothing of the questions is in them. `remains` says where old
    vectors are known to remain until the engine cleans up; it is empty where none do.
    """

    questions: int = 0
    documents: int = 0
    passed_over: int = 0
    remains: str = ""

    def __str__(self) -> str:
        """Return one line of counts."""
        line = f"{self.questions} questions forgotten, {self.documents} documents written again"
        if self.passed_over:
            line += f", {self.passed_over} passed over"
        return f"{line}. {self.remains}".rstrip()


class StateFolder:
    """Where a nudge's state is kept: a folder, or memory when there is none.

    Every operation takes the folder's lock, which the system releases when the process dies. Other
    writers, threads and processes, wait for their turn, for `wait` seconds at most. Operations that
    get an index first finish what an interrupted one left undone, and check that the index is the
    one that was nudged.
    """

    def __init__(self, folder: str | Path | None, *, wait: float = 30.0) -> None:
        """Open `folder`, which need not exist yet; None keeps the state for this object's life.

        Raises `ValueError` for a state that is damaged or was altered.
        """
        self.folder = None if folder is None else Path(folder)
        self.wait = wait
        self._files = None if self.folder is None else StateFiles(self.folder)
        self._state: NudgeState | None = None
        self._seen: object = None
        self._lock = self._new_lock()
        self._unsettled = False
        self._pending: str | None = None  # an observed document that may not have moved yet
        self._damaged: list[int] = []  # records of the journal
        self._forgotten: set[str] = set()  # in memory alone
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
        """Hold the folder's lock, and read what another process wrote since.

        Raises `RuntimeError` when the lock is not free within `wait` seconds.
        """
        if self.folder is None:
            with self._lock:
                yield
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=self.wait)
        except Timeout:
            raise RuntimeError(
                f"another process or thread has been changing the nudge in {self.folder} for "
                f"{self.wait:g} seconds: wait until it has ended"
            ) from None
        try:
            self._read()
            if self._files is not None:
                self._files.sweep()
            yield
        finally:
            self._lock.release()

    def forgotten_among(self, query_ids: Collection[str]) -> set[str]:
        """Return those of the questions that were forgotten here, and are not learned again."""
        if self._files is not None:
            return self._files.forgotten_among(query_ids)
        return self._forgotten & set(query_ids)

    def check_store(self, index: VectorIndex) -> None:
        """Raise `ValueError` when the index is not the one that this state nudged.

        Told by the store's own identity where it has one, and by the vectors that it holds.
        """
        state = self._state
        if state is None:
            return
        own, here = state.store, identity_of(index)
        if own and here and own != here:
            raise ValueError(
                "this state belongs to another store (its identity differs): use the state of this "
                "store, or give force=True if the store was moved or made anew"
            )
        if not self._unsettled and not belongs(state, index):
            raise ValueError(
                f"this state does not belong to the store given: none of the {len(state.base)} "
                "documents that it moved holds its moved vector. Use the state of this store; if "
                "its documents were embedded anew, call refresh"
            )

    def apply(self, state: NudgeState, targets: Floats, index: VectorIndex) -> None:
        """Record `state`, write the targets to the store, and record that it is done.

        `targets` is float32 (n_documents, dimension), by our solver `state.targets()`. A document
        that left the store meanwhile raises `KeyError`.
        """
        with self.locked():
            stored = index.vectors(state.document_ids)
            state = replace(state, store=marked(index))
            self._write(replace(state, phase="applying", previous=stored))
            index.replace(state.document_ids, targets)
            self._write(state.settled())

    def finish(self, index: VectorIndex) -> bool:
        """Finish an operation that was interrupted; return whether there was one."""
        with self.locked():
            state = self._state
            if state is None or not self._unsettled:
                return False
            self.check_store(index)
            if state.phase == "undoing":
                self._put_back(state, index)
                return True
            if state.phase == "applied":
                return self._finish_observation(state, index)
            targets = state.targets()
            ours, _ = ours_among(state, index, range(len(state.base)), targets)
            index.replace([state.document_ids[row] for row in ours], targets[ours])
            self._write(state.settled())
            return True

    def undo(self, index: VectorIndex, *, force: bool = False) -> int:
        """Put the base vectors back, drop the state, and return how many were put back.

        Documents that were deleted from the store since, or embedded anew, have nothing to put
        back. Raises `ValueError`, and keeps the state, for another store than the one that was
        nudged, and when most documents could not be put back; `force` drops the state in any case.
        """
        with self.locked():
            if self._state is not None and self._state.phase != "undoing" and not force:
                self.finish(index)  # afterwards a vector is a target, or not ours
                self.check_store(index)
                if self._damaged:
                    raise ValueError(
                        f"{self._damage()}: the documents of these observations cannot be put "
                        "back. Nothing was changed; force=True puts back the others"
                    )
            state = self._state
            if state is None:
                return 0
            if state.phase != "undoing":
                _, others = ours_among(state, index, range(len(state.base)), state.targets())
                if not force and len(others) > _MOST * len(state.base):
                    raise ValueError(
                        f"{len(others)} of {len(state.base)} documents cannot be put back: the "
                        "store does not hold them, or holds vectors of another text. Nothing was "
                        "changed. Call refresh to bring the state in line, or give force=True"
                    )
                self._write(replace(state, phase="undoing"))
            return self._put_back(state, index)

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
        taken, the encoder is another, the document was embedded anew, or a vector does not fit or
        is not of length one (the document's may have any under the cosine), and `KeyError` for an
        unknown document, each before anything is written.
        """
        with self.locked():
            self.finish(index)
            state = self._observing(query_id, fingerprint)
            self.check_store(index)
            vector = _question(query, state)
            stored = index.vectors([document_id])  # raises for an unknown document
            check_vectors([document_id], stored, Metric.COSINE)
            if document_id not in state.rows:
                check_unit([document_id], stored, index.metric)
            elif not ours_among(state, index, [state.rows[document_id]], state.targets())[0]:
                raise ValueError(
                    f"document {document_id!r} was embedded anew since it was nudged: call refresh"
                )
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

    def forget(
        self, index: VectorIndex, which: Callable[[str], bool], *, purge: bool = False
    ) -> Forgotten:
        """Remove the influence of every question whose id `which` accepts.

        Afterwards store and state are those of a nudge that never saw them, at the same γ, to the
        precision of the store; the files hold neither their ids nor their vectors, and nudging
        again does not learn them. Documents that no question is left for go back to their base
        vectors. With `purge` the engine is asked to remove old versions of what was overwritten.
        """
        with self.locked():
            self.finish(index)
            state = self._state
            if state is None:
                return Forgotten()
            self.check_store(index)
            gone = {id_ for id_ in state.query_ids if which(id_)}
            if not gone:
                return Forgotten()
            kept = [row for row, id_ in enumerate(state.query_ids) if id_ not in gone]
            changed = {
                row
                for id_, found in zip(state.query_ids, state.answers, strict=True)
                if id_ in gone
                for row in found
            }
            before = state.targets()
            ours, others = ours_among(state, index, sorted(changed), before)
            self._remember(gone)
            state = state.with_queries(kept)
            self._write(replace(state, phase="applying", previous=before))
            index.replace([state.document_ids[row] for row in ours], state.targets()[ours])
            self._write(state.settled())
            return Forgotten(
                questions=len(gone),
                documents=len(ours),
                passed_over=len(others),
                remains=_purged(index) if purge else "",
            )

    def refresh(
        self,
        index: VectorIndex,
        corpus: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> dict[str, int]:
        """Bring state and store back in line after documents were deleted, changed or re-ingested.

        A document that the store no longer holds drops out of the state. So does one whose text
        changed, told by the hash of its text in `corpus`, or, without that, by a stored vector that
        is neither its base nor its target; its new vector stays, and a moved one goes back to its
        base. A document that was ingested again unchanged is moved again. Returns the counts
        "deleted", "changed" and "moved". Raises `ValueError`, and changes nothing, for another
        store, and when most documents would drop out; `force` insists.
        """
        with self.locked():
            if not force:
                self.finish(index)
            state = self._state
            if state is None:
                return {"deleted": 0, "changed": 0, "moved": 0}
            own, here = state.store, identity_of(index)
            if not force and own and here and own != here:
                self.check_store(index)  # raises
            plan = plan_refresh(state, index, corpus)
            lost = plan.counts["deleted"] + plan.counts["changed"]
            if not force and lost > _MOST * len(state.base):
                raise ValueError(
                    f"{lost} of {len(state.base)} documents would drop out of the state "
                    f"({plan.counts['deleted']} are not in the store, {plan.counts['changed']} "
                    "have another text or vector). Nothing was changed. If documents have new ids, "
                    "give them stable ones; force=True goes on"
                )
            remaining = state.with_documents(plan.kept)
            remaining = replace(remaining, store=here)
            self._write(replace(remaining, phase="applying", previous=plan.stored[plan.kept]))
            index.replace([state.document_ids[row] for row in plan.again], plan.targets[plan.again])
            self._write(replace(remaining, phase="applied", previous=None))
            return plan.counts

    def _observing(self, query_id: str, fingerprint: str | None) -> NudgeState:
        """Return the state that takes an observation, or raise why it cannot."""
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
        return state

    def _remember(self, query_ids: Collection[str]) -> None:
        if self._files is not None:
            self._files.remember_forgotten(query_ids)
        self._forgotten |= set(query_ids)

    def _put_back(self, state: NudgeState, index: VectorIndex) -> int:
        """Write the base vectors of documents that hold one of ours, and remove the state."""
        ours, _ = ours_among(state, index, range(len(state.base)), state.targets())
        index.replace([state.document_ids[row] for row in ours], state.base[ours])
        if self._files is not None:
            self._files.remove()
            self._seen = self._files.signature()
        self._state, self._unsettled, self._pending = None, False, None
        return len(ours)

    def _damage(self) -> str:
        records = ", ".join(map(str, self._damaged))
        return f"records {records} of the journal in {self.folder} are damaged"

    def _new_lock(self) -> Any:
        return RLock() if self.folder is None else FileLock(self.folder / ".lock", mode=0o600)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = self._new_lock()  # a copy has its own

    def _finish_observation(self, state: NudgeState, index: VectorIndex) -> bool:
        """Move the last observed document unless it has moved; return whether it had not.

        All others have, for every observation finishes the one before it. One that was embedded
        anew since is left to `refresh`.
        """
        id_ = self._pending
        waiting = False
        if id_ is not None and not index.missing([id_]):
            stored, target = index.vectors([id_]), state.target_of(id_)
            before = state.with_queries(range(len(state.query_ids) - 1)).target_of(id_)
            base = state.base[state.rows[id_]]
            waiting = bool(same_rows(stored, before[None])[0] or same_rows(stored, base[None])[0])
            if waiting:
                index.replace([id_], target[None])
        self._unsettled, self._pending = False, None
        return waiting

    def _write(self, state: NudgeState) -> None:
        if self._files is not None:
            self._files.write(state)
            self._seen = self._files.signature()
        self._state, self._pending, self._damaged = state, None, []
        self._unsettled = state.phase != "applied"

    def _read(self) -> None:
        """Read the files unless they are as this object last saw or wrote them."""
        if self._files is None:
            return
        seen = self._files.signature()
        while seen != self._seen:
            try:
                found = self._files.read()
            except ValueError:
                # Without the lock, another process may have replaced files while they were read.
                if (now := self._files.signature()) == seen:
                    raise
                seen = now
                continue
            # The last observation on disk may be missing in the store: the process that knew is
            # gone, or is another one.
            self._state, self._pending, self._damaged = found
            self._seen = seen
            self._unsettled = found.state is not None and (
                found.state.phase != "applied" or found.pending is not None
            )
            if self._damaged:
                warnings.warn(f"{self._damage()}; all others count", UserWarning, stacklevel=4)


def _question(query: Floats, state: NudgeState) -> Floats:
    """Return a question's vector, float32 (dimension,); raise `ValueError` for what cannot be."""
    vector = np.asarray(query, dtype=np.float32)
    if vector.shape != state.base.shape[1:] or not np.isfinite(vector).all():
        raise ValueError(
            f"expected a finite question vector of shape {state.base.shape[1:]}, got one of shape "
            f"{vector.shape}"
        )
    if abs(np.linalg.norm(vector) - 1) > UNIT:  # it would weigh more or less than others
        raise ValueError(
            f"the question's vector has length {np.linalg.norm(vector):.3f}: NUDGE sums vectors of "
            "length one; divide it by its length"
        )
    return vector


def _purged(index: VectorIndex) -> str:
    """Ask the engine to remove old versions; return what is known to remain."""
    purge = getattr(index, "purge", None)
    if purge is None:
        return "What the engine keeps of overwritten vectors is not known here: see its manual."
    return str(purge())
