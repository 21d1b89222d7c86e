"""What a job will do, settled before anything is embedded: the shards, and what each is made of.

The input is read once: bad rows are found, ids are held against each other, and every shard gets
the digest of its rows, so that whoever embeds it later knows that the input is still the same.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from nexus_integrations.files import sha256_of, written_whole
from nexus_integrations.jobs.rows import InputFile, Record, read_records
from nexus_integrations.progress import progress_bar

VERSION = 1
# A shard of very long texts is closed before its rows are many: memory is bounded by both.
_SHARD_CHARACTERS = 2**26
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of rows that is embedded, and written, as a whole.

    It begins in file number `file` at `offset` and `line` and may reach into the files after it.
    `left_out` are (file, line) of rows that repeat an id.
    """

    file: int
    offset: int
    line: int
    rows: int
    digest: str
    left_out: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole job: files, shards, and what they are to become."""

    identity: dict[str, Any]
    """What the vectors and their order depend on; a job resumes only with the same."""
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    blank: int
    """How many texts are blank."""
    rejected: int
    """How many bad rows are left out."""

    @property
    def rows(self) -> int:
        """How many rows will be embedded."""
        return sum(shard.rows for shard in self.shards)

    @property
    def signature(self) -> str:
        """SHA-256, in hex, of the identity: shards of another job have another."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def read(self, number: int) -> tuple[list[str], list[str]]:
        """Return ids and texts of a shard.

        Raises `ValueError` when they are not those that were planned: the input changed since.
        """
        shard = self.shards[number]
        left_out = set(shard.left_out)
        good = (
            found.record
            for found in _records(self.files, shard.file, shard.offset, shard.line)
            if found.record.problem is None and (found.file, found.record.line) not in left_out
        )
        rows = list(islice(good, shard.rows))
        if _digest(rows) != shard.digest:
            raise ValueError(
                f"{self.files[shard.file].path.name} changed while the job ran (from "
                f"{self.files[shard.file].unit} {shard.line} on): start anew with --restart "
                "(restart=True)"
            )
        return [row.id for row in rows], [row.text for row in rows]

    def write(self, path: Path) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        content = {**asdict(self), "version": VERSION}
        for file, plain in zip(self.files, content["files"], strict=True):
            plain["path"] = str(file.path)
        with written_whole(path) as draft:
            draft.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read what `write` wrote; raises `ValueError` when it is damaged or of another version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != VERSION:
                raise ValueError("another version of this package wrote it")
            files, shards = content.pop("files"), content.pop("shards")
            return cls(
                files=tuple(
                    InputFile(
                        **{
                            **file,
                            "path": Path(file["path"]),
                            "text_columns": tuple(file["text_columns"]),
                        }
                    )
                    for file in files
                ),
                shards=tuple(
                    Shard(**{**shard, "left_out": tuple(map(tuple, shard["left_out"]))})
                    for shard in shards
                ),
                **content,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be resumed ({error}): start anew with --restart (restart=True)"
            ) from None


def identity_of(
    files: Sequence[InputFile],
    *,
    role: str,
    fingerprint: str,
    shard_rows: int,
    skip_bad: bool,
) -> dict[str, Any]:
    """Return what the vectors and their order depend on; files count by content, not by name."""
    return {
        "inputs": [
            [sha256_of(file.path), file.kind, file.delimiter, file.id_column, *file.text_columns]
            for file in files
        ],
        "role": role,
        "fingerprint": fingerprint,
        "shard_rows": shard_rows,
        "skip_bad": skip_bad,
    }


def differences(planned: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in words what two identities differ in."""
    words = {
        "inputs": "the input files or their columns",
        "role": "the role",
        "fingerprint": "the model (its fingerprint)",
        "shard_rows": "the rows per shard",
        "skip_bad": "what happens to bad rows",
    }
    return [what for name, what in words.items() if planned.get(name) != wanted.get(name)]


def make_plan(
    files: Sequence[InputFile], identity: dict[str, Any], *, scratch: Path, rejects: Path
) -> Plan:
    """Read the input once and cut it into shards.

    Bad rows have no id, no text, an id that occurred before, or cannot be read. They are written to
    `rejects` by file and line, without their text. Unless the identity says `skip_bad`, they raise
    `ValueError`, which names the first ones; so does an input without a row. `scratch` is a file
    for the ids seen, removed in the end.
    """
    shards: list[Shard] = []
    blank = rejected = 0
    shown: list[str] = []
    pending = _Pending()
    with (
        _SeenIds(scratch) as seen,
        _reject_list(rejects) as report,
        progress_bar(desc="check rows", unit="row") as bar,
    ):
        for found, problem in _judged(files, seen):
            bar.update()
            file, record = files[found.file], found.record
            if problem is not None:
                rejected += 1
                if rejected <= _SHOWN:
                    shown.append(f"{_place(file, record.line)} {problem}")
                line = {"file": file.path.name, file.unit: record.line, "problem": problem}
                report.write(json.dumps(line, ensure_ascii=False) + "\n")
                if record.problem is None:  # whoever reads it again will see nothing wrong
                    pending.left_out.append((found.file, record.line))
                continue
            blank += not record.text.strip()
            pending.add(found)
            if pending.full(identity["shard_rows"]):
                shards.append(pending.shard())
                pending = _Pending()
    if pending.rows:
        shards.append(pending.shard())
    if rejected and not identity["skip_bad"]:
        if rejected > _SHOWN:
            shown.append(f"and {rejected - _SHOWN} more, all in {rejects}")
        raise ValueError(
            f"{rejected} bad rows: {'; '.join(shown)}. Mend them, or leave them out with "
            "--skip-bad (skip_bad=True)"
        )
    if not shards:
        raise ValueError("the input holds no row to embed")
    return Plan(
        identity=identity,
        files=tuple(files),
        shards=tuple(shards),
        blank=blank,
        rejected=rejected,
    )


@contextmanager
def _reject_list(path: Path) -> Iterator[IO[str]]:
    """Open the list of bad rows; it is gone afterwards when nothing was written to it."""
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    finally:
        if path.is_file() and not path.stat().st_size:
            path.unlink()


class _Found(NamedTuple):
    file: int
    record: Record


class _Pending:
    """The rows of the shard that is being cut."""

    def __init__(self) -> None:
        self.rows: list[Record] = []
        self.left_out: list[tuple[int, int]] = []
        self.characters = 0
        self._first: _Found | None = None

    def add(self, found: _Found) -> None:
        self._first = self._first or found
        self.rows.append(found.record)
        self.characters += len(found.record.text)

    def full(self, rows: int) -> bool:
        return len(self.rows) == rows or self.characters >= _SHARD_CHARACTERS

    def shard(self) -> Shard:
        assert self._first is not None, "a shard has a row"
        file, first = self._first
        return Shard(
            file=file,
            offset=first.offset,
            line=first.line,
            rows=len(self.rows),
            digest=_digest(self.rows),
            left_out=tuple(self.left_out),
        )


class _SeenIds:
    """The ids met so far, in a file: their number is bounded by the disk, not by memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_SeenIds":
        self._path.unlink(missing_ok=True)
        self._base = sqlite3.connect(self._path, isolation_level=None)
        # A file that is thrown away needs no protection from crashes.
        self._base.executescript("pragma journal_mode = off; pragma synchronous = off")
        self._base.execute(
            "create table seen (id blob primary key, file int, line int) without rowid"
        )
        self._base.execute("begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        self._path.unlink()

    def add(self, id_: str, file: int, line: int) -> tuple[int, int] | None:
        """Note an id; return file and line of its first occurrence if it has one already."""
        key = hashlib.blake2b(id_.encode(), digest_size=16).digest()
        added = self._base.execute("insert or ignore into seen values (?, ?, ?)", (key, file, line))
        if added.rowcount:
            return None
        first: tuple[int, int] = self._base.execute(
            "select file, line from seen where id = ?", (key,)
        ).fetchone()
        return first


def _judged(files: Sequence[InputFile], seen: _SeenIds) -> Iterator[tuple[_Found, str | None]]:
    """Yield every record and what is wrong with it, as a row or among the others."""
    for found in _records(files):
        record, problem = found.record, found.record.problem
        if problem is None:
            first = seen.add(record.id, found.file, record.line)
            if first is not None:
                problem = f"repeats the id {record.id!r} of {_place(files[first[0]], first[1])}"
        yield found, problem


def _records(
    files: Sequence[InputFile], file: int = 0, offset: int = 0, line: int = 1
) -> Iterator[_Found]:
    """Yield the records of the files from one place on."""
    for number in range(file, len(files)):
        for record in read_records(files[number], offset, line):
            yield _Found(number, record)
        offset, line = 0, 1


def _digest(rows: Iterable[Record]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        # With their lengths, so that no two runs of rows read the same.
        for part in (row.id, row.text):
            content = part.encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _place(file: InputFile, line: int) -> str:
    return f"{file.path.name}, {file.unit} {line}"
