"""The ids that a job has met, of any number."""

import hashlib
import sqlite3
from pathlib import Path
from typing import Any


class SeenIds:
    """The ids met so far, in a file: the disk bounds their number, not memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "SeenIds":
        self._path.unlink(missing_ok=True)
        self._base = sqlite3.connect(self._path, isolation_level=None)
        # A temporary file needs no protection from crashes.
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
        first: Any = self._base.execute("select file, line from seen where id = ?", (key,))
        return first.fetchone()  # type: ignore[no-any-return]
