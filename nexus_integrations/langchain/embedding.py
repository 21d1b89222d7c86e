"""The encoder as a LangChain embedding model."""

from langchain_core.embeddings import Embeddings

from nexus_integrations.backends import Role
from nexus_integrations.frameworks.embedding import EmbeddingModel


class NexusEmbeddings(EmbeddingModel, Embeddings):
    """An embedding model that runs on this machine, with dendritic heads where they were trained.

    `model` is a folder that `save` wrote, a sentence-transformers folder or a hub name. The model
    loads on first use, once per process. An instance carries the name and the settings alone, so
    that it copies, pickles and reaches worker processes at no cost; make a new one after the folder
    was replaced. Queries and documents are embedded under their own roles, as unit vectors. Calls
    take turns, those that wait at the same time share a batch, and the async methods leave the
    event loop free.

    Unknown arguments raise `ValueError`. Loading raises `FileNotFoundError` for a model that is
    nowhere, and `ValueError` for a damaged one or one without the recorded `fingerprint`.
    """

    def cache_namespace(self, role: Role = "document") -> str:
        """Return the namespace that a cache of this role's vectors needs.

        Give it to `CacheBackedEmbeddings.from_bytes_store`, with `key_encoder="sha256"`. That class
        has one namespace: to cache queries too, use the one of "query", which fits both, and a
        store of their own. Models that differ in their query head alone share "document".
        """
        return self._shared.cache_namespace(role)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector per text, as Python floats.

        Raises `TypeError` for a bare string and for an item that is not text.
        """
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """Return the query's unit vector, as Python floats."""
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector per text while the event loop goes on."""
        return await self._aembed(texts, "document")

    async def aembed_query(self, text: str) -> list[float]:
        """Return the query's unit vector while the event loop goes on."""
        return (await self._aembed([text], "query"))[0]
