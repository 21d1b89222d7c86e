"""A small index in one Parquet file: read whole, searched in memory, written back on change."""

from collections.abc import Sequence
from pathlib import Path

from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats


class FileIndex(MemoryIndex):
    """The vectors of a file that `MemoryIndex.save` wrote; `replace` changes the file as well."""

    def __init__(self, path: str | Path) -> None:
        """Read the file; raises `ValueError` when it holds no vectors with ids."""
        stored = MemoryIndex.load(path)
        ids = [id_ for batch in stored.ids() for id_ in batch]
        super().__init__(ids, stored.vectors(ids), stored.metric)
        self.path = Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "FileIndex":
        """Open the file, as the class itself does."""
        return cls(path)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids`, as in memory, and the file in one step."""
        super().replace(ids, vectors)
        self.save(self.path)
