"""What an index may offer beside the `VectorIndex` protocol: an identity, and purging.

An identity tells a store from every other one, so that a nudge's state is never used on the wrong
store. A copy of a store, such as a restored backup, has the identity of the original.
"""

from typing import Protocol, runtime_checkable
from uuid import uuid4

from nexus_integrations.protocols import VectorIndex

# The name under which a store that makes no identity of its own keeps ours.
NOTE = "nexus_identity"


@runtime_checkable
class Identified(Protocol):
    """An index that knows which store it stands for."""

    def identity(self, *, create: bool = False) -> str:
        """Return the store's identity, the same in every process; "" where there is none.

        Some engines give each store an identity. Others hold a note in the store's metadata, which
        `create` writes once, beside what stands there.
        """
        ...


@runtime_checkable
class Purgeable(Protocol):
    """An index that can remove vectors that `replace` has overwritten."""

    def purge(self) -> list[str]:
        """Remove earlier vectors from the store's files, as far as the engine offers it.

        Return one sentence for each place in which they may remain. No other process may write to
        the store meanwhile.
        """
        ...


def identity_of(index: VectorIndex, *, create: bool = False) -> str:
    """Return the identity of the index's store, "" where the engine has none; see `Identified`."""
    return index.identity(create=create) if isinstance(index, Identified) else ""


def purge(index: VectorIndex) -> list[str]:
    """Remove vectors that were overwritten; return where they may remain; see `Purgeable`."""
    if isinstance(index, Purgeable):
        return index.purge()
    return [f"{type(index).__name__} cannot remove earlier vectors: ask its engine"]


def new_note() -> str:
    """Return a note for a store that has none."""
    return uuid4().hex
