"""The files of a nudge's state: a folder is always one whole state, the old one or the new one.

`state.json` names the file of vectors that belongs to it and is replaced in one step. Observed
questions are appended to a journal, each record twice and with a checksum, so that a damaged byte
loses none. Ids, hashes and vectors are in the files, never text; they are their owner's alone.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nexus_integrations.files import read_json, sync_folder, written_whole
from nexus_integrations.nudge.state import NudgeState, Observation
from nexus_integrations.protocols import Floats

_FILE = "state.json"
_FORGOTTEN = "forgotten.json"
RESULT = "nudge.json"
"""What nudging told, for a report."""

_FORMAT = "nexus-nudge-state"
_VERSION = 2
_HEADER = re.compile(rb"([0-9a-f]{32}) (\d{8}) ")  # of a journal's record: its seal and length
_FIELDS = (
    *("phase", "variant", "gamma", "metric", "fingerprint", "store"),
    *("document_ids", "content_sha256", "query_ids", "answers", "observed_ids"),
)


class Found(NamedTuple):
    """What a state folder holds."""

    state: NudgeState | None
    pending: str | None
    """The document of the last observation, which may not have moved yet."""
    damaged: list[int]
    """The numbers of the journal's records, counted from 1, that cannot be read."""


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
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arrays = {"base": state.base, "queries": state.queries}
        if state.previous is not None:
            arrays["previous"] = state.previous
        tensors = save(arrays)
        digest = hashlib.sha256(tensors).hexdigest()
        name = f"vectors-{digest[:16]}.safetensors"
        if not (self.folder / name).exists():
            with written_whole(self.folder / name, private=True) as draft:
                draft.write_bytes(tensors)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "vectors": name,
            "vectors_sha256": digest,
            **{field: getattr(state, field) for field in _FIELDS},
        }
        content["sha256"] = seal = _digest_of(content)
        with written_whole(self.folder / _FILE, private=True) as draft:
            draft.write_bytes(json.dumps(content, ensure_ascii=False).encode())
        self._vectors, self._journal = name, _journal(seal)
        self.sweep()

    def append(self, observation: Observation) -> None:
        """Add one observation to the journal, synced to disk before the call returns.

        When that fails the journal is as it was.
        """
        assert self._journal is not None, "observations belong to a state"
        path = self.folder / self._journal
        records, whole, _ = _records(path.read_bytes() if path.exists() else b"")
        record = json.dumps(
            {
                "number": max((earlier["number"] for earlier in records), default=0) + 1,
                "query_id": observation.query_id,
                "document_id": observation.document_id,
                "content_sha256": observation.content_sha256,
                "query": _encoded(observation.query),
                "base": None if observation.base is None else _encoded(observation.base),
            },
            ensure_ascii=False,
        ).encode()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.truncate(whole)  # a record that was never finished
                file.seek(whole)
                file.write(_sealed(record) * 2)
                file.flush()
                os.fsync(file.fileno())
            if not whole:
                sync_folder(self.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.truncate(path, whole)
            raise

    def read(self) -> Found:
        """Return what the folder holds.

        Raises `ValueError` for a state that is damaged, was altered, or has another format.
        """
        path = self.folder / _FILE
        if not path.exists():
            self._vectors = self._journal = None
            return Found(None, None, [])
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"the nudge state in {self.folder} is damaged: {error}") from None
        try:
            if content["format"] != _FORMAT or content["version"] != _VERSION:
                raise ValueError(f"{path} is of another format than {_FORMAT} {_VERSION}")
            digest = content.pop("sha256")
            if digest != _digest_of(content):
                raise ValueError(f"{path} was altered: its SHA-256 differs")
            state = self._state(content)
        except (KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise ValueError(
                f"the nudge state in {self.folder} is damaged ({type(error).__name__})"
            ) from None
        observations, damaged = _observations(self.folder / _journal(digest))
        state = state.with_observations(observations)
        self._vectors, self._journal = content["vectors"], _journal(digest)
        return Found(state, observations[-1].document_id if observations else None, damaged)

    def remove(self) -> None:
        """Remove the state: first the file that makes it one. What was forgotten stays known."""
        (self.folder / _FILE).unlink()
        (self.folder / RESULT).unlink(missing_ok=True)
        sync_folder(self.folder)
        self._vectors = self._journal = None
        self.sweep()

    def remember_forgotten(self, query_ids: Collection[str]) -> None:
        """Keep hashes, under a key of this folder, of questions that must not be learned again."""
        key, known = self._forgotten()
        hashes = sorted(known | {_keyed(key, id_) for id_ in query_ids})
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_whole(self.folder / _FORGOTTEN, private=True) as draft:
            draft.write_text(json.dumps({"key": key, "forgotten": hashes}) + "\n", encoding="ascii")

    def forgotten_among(self, query_ids: Collection[str]) -> set[str]:
        """Return those of the questions that were forgotten here."""
        key, known = self._forgotten()
        return {id_ for id_ in query_ids if _keyed(key, id_) in known} if known else set()

    def sweep(self) -> None:
        """Remove what belongs to earlier states, drafts of interrupted writes included."""
        kept = {self._vectors, self._journal}
        patterns = ("vectors-*.safetensors", "observed-*.jsonl", ".vectors-*", f".{_FILE}-*")
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def _state(self, content: dict[str, Any]) -> NudgeState:
        path = self.folder / content["vectors"]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != content["vectors_sha256"]:
            raise ValueError(f"{path} was altered: its SHA-256 differs")
        tensors = load(data)
        state = NudgeState(
            base=tensors["base"],
            queries=tensors["queries"],
            previous=tensors.get("previous"),
            **{name: content[name] for name in _FIELDS},
        )
        if len(state.base) != len(state.document_ids) or len(state.queries) != len(state.answers):
            raise ValueError(f"the nudge state in {self.folder} is damaged: parts do not fit")
        return state

    def _forgotten(self) -> tuple[str, set[str]]:
        path = self.folder / _FORGOTTEN
        if not path.exists():
            return secrets.token_hex(32), set()
        content = read_json(path)
        try:
            return str(content["key"]), set(content["forgotten"])
        except (KeyError, TypeError):
            raise ValueError(f"{path} is damaged: it does not tell what was forgotten") from None


def _observations(journal: Path) -> tuple[list[Observation], list[int]]:
    """Return the observations of a journal, and the numbers of those that cannot be read."""
    if not journal.exists():
        return [], []
    records, _, lost = _records(journal.read_bytes())
    numbers = {record["number"] for record in records}
    last = max(numbers, default=0)
    damaged = sorted(set(range(1, last + 1)) - numbers) + [last + 1] * lost
    found = {
        record["query_id"]: Observation(
            query_id=record["query_id"],
            document_id=record["document_id"],
            content_sha256=record["content_sha256"],
            query=_decoded(record["query"]),
            base=None if record["base"] is None else _decoded(record["base"]),
        )
        for record in records
    }
    return list(found.values()), damaged


def _records(data: bytes) -> tuple[list[dict[str, Any]], int, bool]:
    """Return the intact copies of records, the end of the last one, and whether more is damaged.

    A record tells its length, so that a damaged end of line hides no other. A copy without its end
    at the end of the file was being written when the process died: nothing followed from it.
    """
    records: list[dict[str, Any]] = []
    place = end = 0
    lost = False
    while place < len(data):
        header = _HEADER.match(data, place)
        stop = header.end() + int(header[2]) if header else 0
        if header and _seal(data[header.end() : stop]) == header[1] and stop < len(data):
            records.append(json.loads(data[header.end() : stop]))
            place = end = stop + 1
            lost = False
            continue
        newline = data.find(b"\n", place)
        if newline < 0:
            break
        place, lost = newline + 1, True
    return records, end, lost


def _sealed(record: bytes) -> bytes:
    return b"%s %08d %s\n" % (_seal(record), len(record), record)


def _seal(record: bytes) -> bytes:
    return hashlib.sha256(record).hexdigest()[:32].encode()


def _journal(digest: str) -> str:
    """Return the name of the journal that belongs to this `state.json`: a new state has none yet.

    It does not follow from the vectors alone: forgetting what was observed brings old ones back.
    """
    return f"observed-{digest[:16]}.jsonl"


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _keyed(key: str, query_id: str) -> str:
    return hmac.new(bytes.fromhex(key), query_id.encode(), hashlib.sha256).hexdigest()


def _encoded(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
