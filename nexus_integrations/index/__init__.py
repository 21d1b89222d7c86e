"""Document vectors where they live: one `VectorIndex` per engine, over its native handle."""

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex

__all__ = ["FileIndex", "MemoryIndex"]
