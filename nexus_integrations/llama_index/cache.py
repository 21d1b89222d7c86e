"""A cache of vectors in which neither roles nor models share an entry."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from nexus_integrations.backends import Role
from nexus_integrations.frameworks.shared_encoder import SharedEncoder
from nexus_integrations.llama_index.observers import original

# LlamaIndex asks its cache for a text alone; which role the text has is known only to the caller.
_role: "ContextVar[Role]" = ContextVar("nexus_integrations_role", default="document")


@contextmanager
def cached_as(role: Role) -> Iterator[None]:
    """Let the caches read and written inside treat texts as of this role."""
    token = _role.set(role)
    try:
        yield
    finally:
        _role.reset(token)


class RoleCache(BaseKVStore):
    """A key-value store whose keys carry the role and the encoder's fingerprint."""

    def __init__(self, store: BaseKVStore, shared: SharedEncoder) -> None:
        """Keep the vectors of `shared` in `store`, which other models may use as well.

        Raises `TypeError` for a store that is no `BaseKVStore`.
        """
        if not isinstance(store, BaseKVStore):
            raise TypeError(
                f"embeddings_cache must be a BaseKVStore, such as SimpleKVStore(), not a "
                f"{type(store).__name__}"
            )
        self.store: BaseKVStore = store.store if isinstance(store, RoleCache) else store
        self._shared = shared

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store a vector under its text."""
        self.store.put(self._full(key), val, collection)

    async def aput(
        self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION
    ) -> None:
        """Store a vector under its text."""
        await self.store.aput(await self._afull(key), val, collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the vector of a text in the current role, or None."""
        return self.store.get(self._full(key), collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the vector of a text in the current role, or None."""
        return await self.store.aget(await self._afull(key), collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return all that the store holds, of every role and model, under full keys."""
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return all that the store holds, of every role and model, under full keys."""
        return await self.store.aget_all(collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forget the vector of a text in the current role; tell whether there was one."""
        return self.store.delete(self._full(key), collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forget the vector of a text in the current role; tell whether there was one."""
        return await self.store.adelete(await self._afull(key), collection)

    def _full(self, text: str) -> str:
        return f"{self._shared.cache_namespace(_role.get())}:{original(text)}"

    async def _afull(self, text: str) -> str:
        return f"{await self._shared.acache_namespace(_role.get())}:{original(text)}"
