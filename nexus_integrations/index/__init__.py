"""Document vectors where they live: one `VectorIndex` per engine, over its native handle.

An index may offer more than the protocol:

- `identity`, a string that tells its store from every other one, so that a nudge's state is never
  used on the wrong store; "" while the store has none. A copy, such as a restored backup, has the
  identity of the original.
- `mark() -> str`, where the engine gives a store no identity but holds a note: write one into the
  store's metadata, beside what stands there, if there is none yet; return the identity.
- `purge() -> str`: remove overwritten vectors from the store's files as far as the engine offers
  it, and say where they are known to remain, "" for nowhere. No other process may write meanwhile.
"""

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex

__all__ = ["FileIndex", "MemoryIndex"]
