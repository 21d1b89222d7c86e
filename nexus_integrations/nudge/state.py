"""The durable record of what a nudge moved, from which it is finished, undone or done again.

A state folder holds `state.json` and one safetensors file that it names. The tensors are written
under a new name first and the JSON is replaced in one step, so that a folder is always a whole
state: the old or the new one. It holds ids and vectors, never text.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nexus_integrations.nudge.solver import Shift, Turn, query_sums
from nexus_integrations.types import Floats, VectorIndex

Variant = Literal["n", "m"]
# "applying" and "undoing" are on disk before the store is written: found on opening, they mean that
# the store may hold either vector of any document.
Phase = Literal["applying", "applied", "undoing"]

_FILE = "state.json"
_FORMAT = "nexus-nudge-state"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class NudgeState:
    """What is needed to compute, finish, undo or repeat a nudge.

    `base` are the touched documents' vectors as stored before, float32 (n_documents, dimension);
    `queries` the vectors of the training queries, float32 (n_queries, dimension); `answers[i]` the
    row numbers of the documents that query i moves. `content_sha256` tells whether a document's
    text has changed since.
    """

    phase: Phase
    variant: Variant
    gamma: float
    metric: str
    fingerprint: str
    document_ids: list[str] = field(repr=False)
    content_sha256: list[str] = field(repr=False)
    query_ids: list[str] = field(repr=False)
    answers: list[list[int]] = field(repr=False)
    base: Floats = field(repr=False)
    queries: Floats = field(repr=False)

    @property
    def sums(self) -> Floats:
        """G, float32 (n_documents, dimension): per document the sum of the queries it answers."""
        return query_sums(self.queries, self.answers, len(self.document_ids))

    def targets(self) -> Floats:
        """Return the vectors that the nudge writes, float32 (n_documents, dimension).

        NUDGE-N turns a document and keeps its length.
        """
        if self.variant == "m":
            return Shift.of(self.base, self.sums).at(self.gamma)
        length = np.linalg.norm(self.base, axis=1, keepdims=True)
        turned: Floats = Turn.of(self.base, self.sums).at(self.gamma) * length
        return turned

    def write_to(self, folder: Path) -> None:
        """Make this the folder's state, synced to disk before the call returns."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = save({"base": self.base, "queries": self.queries})
        digest = hashlib.sha256(tensors).hexdigest()
        name = f"vectors-{digest[:16]}.safetensors"
        _write_synced(folder, name, tensors)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "phase": self.phase,
            "variant": self.variant,
            "gamma": self.gamma,
            "metric": self.metric,
            "fingerprint": self.fingerprint,
            "vectors": name,
            "vectors_sha256": digest,
            "document_ids": self.document_ids,
            "content_sha256": self.content_sha256,
            "query_ids": self.query_ids,
            "answers": self.answers,
        }
        _write_synced(folder, _FILE, json.dumps(content, ensure_ascii=False).encode())
        for old in folder.glob("vectors-*.safetensors"):
            if old.name != name:
                old.unlink()

    @classmethod
    def read_from(cls, folder: Path) -> "NudgeState | None":
        """Return the folder's state, or None when it holds none.

        Raises `ValueError` for a state that is damaged, was altered, or has another format.
        """
        path = folder / _FILE
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT or content["version"] != _VERSION:
                raise ValueError(
                    f"{path} has format {content['format']} {content['version']}, expected "
                    f"{_FORMAT} {_VERSION}"
                )
            data = (folder / content["vectors"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != content["vectors_sha256"]:
                raise ValueError(f"{folder / content['vectors']} was altered: its SHA-256 differs")
            tensors = load(data)
            state = cls(
                base=tensors["base"],
                queries=tensors["queries"],
                **{name: content[name] for name in _FIELDS},
            )
        except (KeyError, TypeError, json.JSONDecodeError, OSError, SafetensorError) as error:
            raise ValueError(f"the nudge state in {folder} is damaged: {error!r}") from None
        if len(state.base) != len(state.document_ids) or len(state.queries) != len(state.answers):
            raise ValueError(f"the nudge state in {folder} is damaged: its parts do not fit")
        return state


_FIELDS = (
    "phase",
    "variant",
    "gamma",
    "metric",
    "fingerprint",
    "document_ids",
    "content_sha256",
    "query_ids",
    "answers",
)


class StateFolder:
    """Where a nudge's state is kept: a folder, or memory when there is none."""

    def __init__(self, folder: str | Path | None) -> None:
        """Open `folder`, which need not exist yet; None keeps the state for this object's life."""
        self.folder = None if folder is None else Path(folder)
        self._state = None if self.folder is None else NudgeState.read_from(self.folder)

    @property
    def state(self) -> NudgeState | None:
        """The state as last written, or None when nothing is moved."""
        return self._state

    def apply(self, state: NudgeState, targets: Floats, index: VectorIndex) -> None:
        """Record `state`, write the targets to the store, and record that it is done.

        `targets` is float32 (n_documents, dimension), by our solver `state.targets()`.
        """
        self._write(replace(state, phase="applying"))
        index.replace(state.document_ids, targets)
        self._write(replace(state, phase="applied"))

    def undo(self, index: VectorIndex) -> int:
        """Put the base vectors back, forget the state, and return how many were put back.

        Documents that were deleted from the store since are passed over.
        """
        state = self._state
        if state is None:
            return 0
        self._write(replace(state, phase="undoing"))
        restored = restore(state, index)
        if self.folder is not None:
            (self.folder / _FILE).unlink()
            for tensors in self.folder.glob("vectors-*.safetensors"):
                tensors.unlink()
        self._state = None
        return restored

    def _write(self, state: NudgeState) -> None:
        if self.folder is not None:
            state.write_to(self.folder)
        self._state = state


def restore(state: NudgeState, index: VectorIndex) -> int:
    """Write the base vectors to `index`, and return how many documents it still holds."""
    stored = {id_ for batch in index.ids() for id_ in batch}
    kept = [row for row, id_ in enumerate(state.document_ids) if id_ in stored]
    index.replace([state.document_ids[row] for row in kept], state.base[kept])
    return len(kept)


def content_hashes(texts: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each text, in hex."""
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]


def _write_synced(folder: Path, name: str, data: bytes) -> None:
    """Replace a file in one step: whoever reads it sees the old content or the new one."""
    handle, draft = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, folder / name)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must survive a power cut
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
