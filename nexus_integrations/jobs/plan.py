"""What a job will do: the shards, and the rows of each, settled before anything is embedded.

A row is read twice: here, where bad rows are found, ids compared and each shard gets the digest of
its rows; and when its shard is embedded, where the digest shows that the input is still the same.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from nexus_integrations.backends import Role
from nexus_integrations.files import written_whole
from nexus_integrations.jobs.ids import SeenIds
from nexus_integrations.jobs.rows import InputFile, Row, read_rows
from nexus_integrations.progress import progress_bar
from nexus_integrations.records import Record

# A shard of very long texts is closed before its rows are many: memory is bounded by both.
_SHARD_CHARACTERS = 2**26
_SHOWN = 10
# What the vectors and their order depend on, and how a message names it.
_IDENTITY = {
    "format": "the version of this package",
    "inputs": "the input files or their columns",
    "role": "the role",
    "fingerprint": "the model (its fingerprint)",
    "shard_rows": "the rows per shard",
}
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows that are embedded and written together.

    They begin in file number `file` at `offset` and `line` and may reach into the files after it.
    `left_out` are (file, line) of rows that repeat an id.
    """

    file: int
    offset: int
    line: int
    rows: int
    digest: str
    left_out: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """What a job depends on, its files and shards, and how many texts are blank and rows bad."""

    format: int
    inputs: str
    """SHA-256, in hex, of all rows."""
    role: Role
    fingerprint: str
    shard_rows: int
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    blank: int
    rejected: int

    @property
    def rows(self) -> int:
        """How many rows will be embedded."""
        return sum(shard.rows for shard in self.shards)

    @property
    def signature(self) -> str:
        """SHA-256, in hex, of what the vectors depend on; every shard carries it."""
        identity = [getattr(self, name) for name in _IDENTITY]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def differences(self, other: "Plan") -> list[str]:
        """Say in words what the vectors of two plans depend on differently."""
        return [
            what for name, what in _IDENTITY.items() if getattr(self, name) != getattr(other, name)
        ]


class ShardReader:
    """Reads the shards of a plan; consecutive shards are read in one pass over the files."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next = -1
        self._rows: Iterator[_Found] = iter(())

    def read(self, number: int) -> tuple[list[str], list[str]]:
        """Return ids and texts of a shard.

        Raises `ValueError` when they are not the planned ones: the input changed since.
        """
        shard = self._plan.shards[number]
        if number != self._next:
            self._rows = _read(self._plan.files, shard.file, shard.offset, shard.line)
        self._next = -1
        left_out = set(shard.left_out)
        good = (
            found.row
            for found in self._rows
            if found.row.problem is None and (found.file, found.row.line) not in left_out
        )
        rows = list(islice(good, shard.rows))
        digest = hashlib.sha256()
        for row in rows:
            digest.update(_content(row))
        if digest.hexdigest() != shard.digest:
            file = self._plan.files[shard.file]
            raise ValueError(
                f"{file.path.name} changed while the job ran (from {file.unit} {shard.line} on): "
                "start anew with --restart (restart=True)"
            )
        self._next = number + 1
        return [row.id for row in rows], [row.text for row in rows]


def make_plan(
    files: Sequence[InputFile],
    *,
    role: Role,
    fingerprint: str,
    shard_rows: int,
    skip_bad: bool,
    rejects: Path,
    scratch: Path,
) -> Plan:
    """Read the input once and cut it into shards.

    A bad row has no id, no text, an id that occurred before, or cannot be read. `rejects` lists bad
    rows by file and line, without their text. Unless `skip_bad`, they raise `ValueError`, which
    names the first ones; so does an input without a row. `scratch` is a folder, of the file system
    of `rejects`, for what is removed in the end.
    """
    inputs = _Inputs()
    with (
        SeenIds(scratch / ".ids") as seen,
        _reject_list(rejects, scratch) as bad,
        progress_bar(desc="check rows", unit="row") as bar,
    ):
        shards = list(_cut(files, shard_rows, seen, bad, inputs, bar))
    if bad.count and not skip_bad:
        raise ValueError(bad.told(rejects))
    if not shards:
        raise ValueError("the input holds no row to embed")
    return Plan(
        format=_FORMAT,
        inputs=inputs.digest.hexdigest(),
        role=role,
        fingerprint=fingerprint,
        shard_rows=shard_rows,
        files=tuple(files),
        shards=tuple(shards),
        blank=inputs.blank,
        rejected=bad.count,
    )


class _Inputs:
    """What is told of all rows together."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.blank = 0


def _cut(
    files: Sequence[InputFile],
    shard_rows: int,
    seen: SeenIds,
    bad: "_Rejects",
    inputs: _Inputs,
    bar: Any,
) -> Iterator[Shard]:
    """Yield the shards of the good rows; note the others in `bad`."""
    pending = _Pending()
    for found, problem in _judged(files, seen):
        bar.update()
        if problem is not None:
            bad.add(files[found.file], found.row.line, problem)
            if found.row.problem is None:  # a later reader finds nothing wrong with it
                pending.left_out.append((found.file, found.row.line))
            continue
        inputs.blank += not found.row.text.strip()
        inputs.digest.update(pending.add(found))
        if pending.full(shard_rows):
            yield pending.shard()
            pending = _Pending()
    if pending.rows:
        yield pending.shard()


class _Found(NamedTuple):
    file: int
    row: Row


class _Pending:
    """The shard that is being cut."""

    def __init__(self) -> None:
        self.rows = self.characters = 0
        self.left_out: list[tuple[int, int]] = []
        self._digest = hashlib.sha256()
        self._first: _Found | None = None

    def add(self, found: _Found) -> bytes:
        """Add a row; return what digests take of it."""
        self._first = self._first or found
        self.rows += 1
        self.characters += len(found.row.text)
        content = _content(found.row)
        self._digest.update(content)
        return content

    def full(self, rows: int) -> bool:
        return self.rows == rows or self.characters >= _SHARD_CHARACTERS

    def shard(self) -> Shard:
        assert self._first is not None, "a shard has a row"
        file, first = self._first
        return Shard(
            file=file,
            offset=first.offset,
            line=first.line,
            rows=self.rows,
            digest=self._digest.hexdigest(),
            left_out=tuple(self.left_out),
        )


class _Rejects:
    """The bad rows: all in a file, the first ones for a message."""

    def __init__(self, file: IO[str]) -> None:
        self.count = 0
        self._file = file
        self._shown: list[str] = []

    def add(self, file: InputFile, line: int, problem: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self._shown.append(f"{_place(file, line)} {problem}")
        about = {"file": file.path.name, file.unit: line, "problem": problem}
        self._file.write(json.dumps(about, ensure_ascii=False) + "\n")

    def told(self, path: Path) -> str:
        more = [f"and {self.count - _SHOWN} more, all in {path}"] if self.count > _SHOWN else []
        return (
            f"{self.count} bad rows: {'; '.join([*self._shown, *more])}. Correct them, or leave "
            "them out with --skip-bad (skip_bad=True)"
        )


@contextmanager
def _reject_list(path: Path, drafts: Path) -> Iterator[_Rejects]:
    """Give the list of bad rows; the file is gone afterwards when there are none."""
    with written_whole(path, drafts) as draft, draft.open("w", encoding="utf-8") as file:
        rejects = _Rejects(file)
        yield rejects
    if not rejects.count:
        path.unlink()


def _judged(files: Sequence[InputFile], seen: SeenIds) -> Iterator[tuple[_Found, str | None]]:
    """Yield every row and what is wrong with it, by itself or among the others."""
    for found in _read(files):
        row, problem = found.row, found.row.problem
        if problem is None:
            first = seen.add(row.id, found.file, row.line)
            if first is not None:
                problem = f"repeats the id {row.id!r} of {_place(files[first[0]], first[1])}"
        yield found, problem


def _read(
    files: Sequence[InputFile], file: int = 0, offset: int = 0, line: int = 1
) -> Iterator[_Found]:
    """Yield the rows of the files from one place on."""
    for number in range(file, len(files)):
        for row in read_rows(files[number], offset, line):
            yield _Found(number, row)
        offset, line = 0, 1


def _content(row: Row) -> bytes:
    """Return id and text with their lengths: no two sequences of rows have the same bytes."""
    parts = (part.encode("utf-8", "surrogatepass") for part in (row.id, row.text))
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _place(file: InputFile, line: int) -> str:
    return f"{file.path.name}, {file.unit} {line}"
