"""The durable record of what a nudge moved, from which it is finished, undone or done again.

A state folder holds `state.json`, one safetensors file that it names, and, where questions were
observed since, a journal of theirs that belongs to this `state.json` alone. A new state is written
under new names first and `state.json` is replaced in one step, so that a folder is always one whole
state: the old or the new one. It holds ids, hashes and vectors, never text.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nexus_integrations.nudge.solver import Shift, Turn, query_sums
from nexus_integrations.protocols import Floats

Variant = Literal["n", "m"]
# "applying" and "undoing" are on disk before the store is written: found on opening, they mean that
# the store may hold either vector of any document.
Phase = Literal["applying", "applied", "undoing"]

_FILE = "state.json"
_FORMAT = "nexus-nudge-state"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One question answered in use.

    `query` is its unit vector, float32 (dimension,); `base` the document's vector as stored before,
    where no other question had moved it, else None.
    """

    query_id: str
    document_id: str
    content_sha256: str
    query: Floats = field(repr=False)
    base: Floats | None = field(repr=False)


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

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row number of each document id."""
        return {id_: row for row, id_ in enumerate(self.document_ids)}

    @property
    def sums(self) -> Floats:
        """G, float32 (n_documents, dimension): per document the sum of the queries it answers."""
        return query_sums(self.queries, self.answers, len(self.document_ids))

    def targets(self) -> Floats:
        """Return the vectors that the nudge writes, float32 (n_documents, dimension).

        NUDGE-N turns a document and keeps its length; one without questions keeps its base vector.
        """
        return self._moved(self.base, self.sums)

    def target_of(self, document_id: str) -> Floats:
        """Return the vector that the nudge writes for one document, float32 (dimension,)."""
        row = self.rows[document_id]
        own = [number for number, found in enumerate(self.answers) if row in found]
        sums = query_sums(self.queries[own], [[0]] * len(own), 1)
        moved: Floats = self._moved(self.base[[row]], sums)[0]
        return moved

    def with_observations(self, observations: Sequence[Observation]) -> "NudgeState":
        """Return the state with these questions more, in their order."""
        if not observations:
            return self
        moved = [(new, new.base) for new in observations if new.base is not None]
        state = replace(
            self,
            document_ids=[*self.document_ids, *(new.document_id for new, _ in moved)],
            content_sha256=[*self.content_sha256, *(new.content_sha256 for new, _ in moved)],
            base=np.concatenate([self.base, *(base[None] for _, base in moved)]),
        )
        return replace(
            state,
            query_ids=[*self.query_ids, *(new.query_id for new in observations)],
            queries=np.concatenate([self.queries, *(new.query[None] for new in observations)]),
            answers=[*self.answers, *([state.rows[new.document_id]] for new in observations)],
        )

    def with_queries(self, kept: Sequence[int]) -> "NudgeState":
        """Return the state of these queries alone; documents stay, also those left without any."""
        return replace(
            self,
            query_ids=[self.query_ids[number] for number in kept],
            queries=self.queries[list(kept)],
            answers=[self.answers[number] for number in kept],
        )

    def with_documents(self, kept: Sequence[int]) -> "NudgeState":
        """Return the state of these documents alone, and of the queries that still move one."""
        places = {row: place for place, row in enumerate(kept)}
        answers = [[places[row] for row in found if row in places] for found in self.answers]
        queries = [number for number, found in enumerate(answers) if found]
        return replace(
            self,
            document_ids=[self.document_ids[row] for row in kept],
            content_sha256=[self.content_sha256[row] for row in kept],
            base=self.base[list(kept)],
            query_ids=[self.query_ids[number] for number in queries],
            queries=self.queries[queries],
            answers=[answers[number] for number in queries],
        )

    def _moved(self, base: Floats, sums: Floats) -> Floats:
        idle = ~sums.any(axis=1, keepdims=True)
        if self.variant == "m":
            moved = Shift.of(base, sums).at(self.gamma)
        else:
            length = np.linalg.norm(base, axis=1, keepdims=True)
            moved = Turn.of(base, sums).at(self.gamma) * length
        return np.where(idle, base, moved)


class StateFiles:
    """The files of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The names of the files that belong to `state.json`; both None when there is none.
        self._vectors: str | None = None
        self._journal: str | None = None

    def signature(self) -> object:
        """Return what changes whenever the state on disk does; None when there is no state."""
        found = []
        for path in (self.folder / _FILE, *sorted(self.folder.glob("observed-*.jsonl"))):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found) or None

    def write(self, state: NudgeState) -> None:
        """Make `state` the folder's state, synced to disk before the call returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = save({"base": state.base, "queries": state.queries})
        digest = hashlib.sha256(tensors).hexdigest()
        name = f"vectors-{digest[:16]}.safetensors"
        if not (self.folder / name).exists():
            _write_synced(self.folder, name, tensors)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "phase": state.phase,
            "variant": state.variant,
            "gamma": state.gamma,
            "metric": state.metric,
            "fingerprint": state.fingerprint,
            "vectors": name,
            "vectors_sha256": digest,
            "document_ids": state.document_ids,
            "content_sha256": state.content_sha256,
            "query_ids": state.query_ids,
            "answers": state.answers,
        }
        content["sha256"] = seal = _digest_of(content)
        _write_synced(self.folder, _FILE, json.dumps(content, ensure_ascii=False).encode())
        self._vectors, self._journal = name, _journal(seal)
        self.sweep()

    def append(self, observation: Observation) -> None:
        """Add one observation to the journal, synced to disk before the call returns.

        When that fails the journal is as it was.
        """
        assert self._journal is not None, "observations belong to a state"
        line = json.dumps(
            {
                "query_id": observation.query_id,
                "document_id": observation.document_id,
                "content_sha256": observation.content_sha256,
                "query": _encoded(observation.query),
                "base": None if observation.base is None else _encoded(observation.base),
            },
            ensure_ascii=False,
        ).encode()
        path = self.folder / self._journal
        whole = _whole_lines(path)
        try:
            with path.open("ab") as file:
                file.truncate(whole)  # a line that was never finished
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if not whole:
                _sync_folder(self.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.truncate(path, whole)
            raise

    def read(self) -> tuple[NudgeState | None, str | None]:
        """Return the folder's state, or None, and the document of its journal's last observation.

        Raises `ValueError` for a state that is damaged, was altered, or has another format.
        """
        path = self.folder / _FILE
        if not path.exists():
            self._vectors = self._journal = None
            return None, None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT or content["version"] != _VERSION:
                raise ValueError(
                    f"{path} has format {content['format']} {content['version']}, expected "
                    f"{_FORMAT} {_VERSION}"
                )
            digest = content.pop("sha256")
            if digest != _digest_of(content):
                raise ValueError(f"{path} was altered: its SHA-256 differs")
            data = (self.folder / content["vectors"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != content["vectors_sha256"]:
                raise ValueError(
                    f"{self.folder / content['vectors']} was altered: its SHA-256 differs"
                )
            tensors = load(data)
            state = NudgeState(
                base=tensors["base"],
                queries=tensors["queries"],
                **{name: content[name] for name in _FIELDS},
            )
            if len(state.base) != len(state.document_ids) or len(state.queries) != len(
                state.answers
            ):
                raise ValueError(f"the nudge state in {self.folder} is damaged: parts do not fit")
            observations = self._observations(_journal(digest))
            state = state.with_observations(observations)
        except (
            *(KeyError, TypeError, AttributeError, OSError),
            *(json.JSONDecodeError, UnicodeDecodeError, SafetensorError),
        ) as error:
            raise ValueError(f"the nudge state in {self.folder} is damaged: {error!r}") from None
        self._vectors, self._journal = content["vectors"], _journal(digest)
        return state, observations[-1].document_id if observations else None

    def remove(self) -> None:
        """Remove the state: first the file that makes it one."""
        (self.folder / _FILE).unlink()
        _sync_folder(self.folder)
        self._vectors = self._journal = None
        self.sweep()

    def _observations(self, journal: str) -> list[Observation]:
        path = self.folder / journal
        if not path.exists():
            return []
        found = []
        # A line without its end was being written when the process died: nothing followed from it.
        for line in path.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            found.append(
                Observation(
                    query_id=row["query_id"],
                    document_id=row["document_id"],
                    content_sha256=row["content_sha256"],
                    query=_decoded(row["query"]),
                    base=None if row["base"] is None else _decoded(row["base"]),
                )
            )
        return found

    def sweep(self) -> None:
        """Remove what belongs to earlier states, drafts of interrupted writes included."""
        kept = {self._vectors, self._journal}
        patterns = ("vectors-*.safetensors", "observed-*.jsonl", ".vectors-*", f".{_FILE}-*")
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)


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


def content_hashes(texts: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each text, in hex."""
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]


def _journal(digest: str) -> str:
    """The journal's name follows from what `state.json` holds, so that a new state has none yet.

    It cannot follow from the vectors alone: forgetting what was observed brings old ones back.
    """
    return f"observed-{digest[:16]}.jsonl"


def _whole_lines(path: Path) -> int:
    """Return the length of a journal up to the end of its last finished line, 0 without a file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read() == b"\n":
            return size
    return path.read_bytes().rfind(b"\n") + 1


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _encoded(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


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
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make new names survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
