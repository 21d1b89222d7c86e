"""A small index in one Parquet file: read whole, searched in memory, written back on change."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats, Hits

_WAIT = 30.0  # seconds that a writer waits for another one


class FileIndex(MemoryIndex):
    """The vectors of a file that `MemoryIndex.save` wrote; `replace` changes the file.

    Several processes may use one file: each reads it again when another one has written it, and
    writers take turns. Memory never holds what the file does not.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the file; raises `ValueError` when it is damaged or holds no vectors with ids."""
        self.path = Path(path)
        self._read()

    @classmethod
    def load(cls, path: str | Path) -> "FileIndex":
        """Open the file, as the class itself does."""
        return cls(path)

    def __len__(self) -> int:
        """The number of stored vectors."""
        self._read_if_changed()
        return super().__len__()

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the file does not hold."""
        self._read_if_changed()
        return super().missing(ids)

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time, in the file's order."""
        self._read_if_changed()
        return super().ids(batch_size)

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked."""
        self._read_if_changed()
        return super().vectors(ids)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension), exactly."""
        self._read_if_changed()
        return super().search(queries, k)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` in the file, in one step, and then in memory.

        Raises `RuntimeError` when another process has been writing for half a minute.
        """
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), mode=0o600)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise RuntimeError(
                f"another process has been writing {self.path} for {_WAIT:g} seconds: try again "
                "when it has ended"
            ) from None
        try:
            self._read_if_changed()
            stored = [id_ for batch in super().ids() for id_ in batch]
            changed = MemoryIndex(stored, super().vectors(stored), self.metric)
            changed.replace(ids, np.asarray(vectors, dtype=np.float32))
            changed.save(self.path)
            super().replace(ids, vectors)
            self._seen = self._signature()
        finally:
            lock.release()

    def purge(self) -> str:
        """Say what remains of overwritten vectors: the file is written anew, so nothing in it."""
        return ""

    def _read_if_changed(self) -> None:
        if self._signature() != self._seen:
            self._read()

    def _read(self) -> None:
        seen = self._signature()
        stored = MemoryIndex.load(self.path)
        ids = [id_ for batch in stored.ids() for id_ in batch]
        super().__init__(ids, stored.vectors(ids), stored.metric)
        self._seen = seen

    def _signature(self) -> object:
        """Return what changes whenever the file does; None where there is none."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
