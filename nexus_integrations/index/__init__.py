"""Document vectors where they live: one `VectorIndex` per engine, over its native handle."""

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.index.optional import identity_of, purge

__all__ = ["FileIndex", "MemoryIndex", "identity_of", "purge"]
