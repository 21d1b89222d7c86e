"""The encoder as a LlamaIndex embedding model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import Field

from nexus_integrations.frameworks.embedding import EmbeddingModel
from nexus_integrations.llama_index.cache import RoleCache, cached_as
from nexus_integrations.llama_index.observers import (
    is_observed,
    is_reported,
    original,
    stand_ins,
    without_span,
)

# These belong to a process: another one that unpickles an embedding has its own.
_PROCESS_FIELDS = ("callback_manager", "rate_limiter")


class NexusEmbedding(EmbeddingModel, BaseEmbedding):
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

    embed_batch_size: int = Field(
        default=64, gt=0, le=2048, description="How many texts make one batch, and one event."
    )
    embeddings_cache: Any | None = Field(
        default=None,
        exclude=True,  # a store is no configuration, and JSON does not take it
        description="A BaseKVStore of vectors; its keys are kept apart by role and fingerprint.",
    )
    redact_events: bool = Field(
        default=False,
        description="Keep the texts out of this model's events, callbacks and spans.",
    )

    def model_post_init(self, context: Any, /) -> None:
        """Name the encoder; nothing is loaded."""
        super().model_post_init(context)
        self.embeddings_cache = self.embeddings_cache  # assignment makes it a RoleCache

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises this class."""
        return "NexusEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return settings and fingerprint, from which `from_dict` makes this model again."""
        # LlamaIndex before 0.14.23 puts this into events, where no path belongs.
        return self.to_payload() if is_reported() else super().to_dict(**kwargs)

    def to_payload(self) -> dict[str, Any]:
        """Return what events tell about this model: no path. Nothing is loaded."""
        return {
            "class_name": self.class_name(),
            "model_name": self._bound().public_name(),
            "embed_batch_size": self.embed_batch_size,
        }

    # What observers see of a text is told here, before LlamaIndex's base class reports it.

    @without_span
    def get_query_embedding(self, query: str) -> list[float]:
        """Embed a query, as LlamaIndex does, from the cache where it is there in this role."""
        if self._is_direct():
            return self._embed([query], "query")[0]
        with cached_as("query"), stand_ins([query], redact=self.redact_events) as shown:
            return super().get_query_embedding(shown[0])

    @without_span
    async def aget_query_embedding(self, query: str) -> list[float]:
        """Embed a query while the event loop goes on."""
        if self._is_direct():
            return (await self._aembed([query], "query"))[0]
        with cached_as("query"), stand_ins([query], redact=self.redact_events) as shown:
            return await super().aget_query_embedding(shown[0])

    @without_span
    def get_text_embedding(self, text: str) -> list[float]:
        """Embed a text."""
        with stand_ins([text], redact=self.redact_events) as shown:
            return super().get_text_embedding(shown[0])

    @without_span
    async def aget_text_embedding(self, text: str) -> list[float]:
        """Embed a text while the event loop goes on."""
        with stand_ins([text], redact=self.redact_events) as shown:
            return await super().aget_text_embedding(shown[0])

    @without_span
    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Embed texts in batches of `embed_batch_size`."""
        with stand_ins(texts, redact=self.redact_events) as shown:
            return super().get_text_embedding_batch(shown, show_progress, **kwargs)

    @without_span
    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Embed texts in batches while the event loop goes on."""
        with stand_ins(texts, redact=self.redact_events) as shown:
            return await super().aget_text_embedding_batch(shown, show_progress, **kwargs)

    @without_span
    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Give each node its embedding, as a step of an ingestion pipeline."""
        if not self.redact_events:
            return super().__call__(nodes, **kwargs)
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        for node, row in zip(nodes, self.get_text_embedding_batch(texts, **kwargs), strict=True):
            node.embedding = row
        return nodes

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([original(query)], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aembed([original(query)], "query"))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([original(text)], "document")[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aembed([original(text)], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed([original(text) for text in texts], "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._aembed([original(text) for text in texts], "document")

    def _is_direct(self) -> bool:
        """Tell whether the base class would do nothing about a query but embed it."""
        return (
            type(self) is NexusEmbedding  # another class may embed in another way
            and self.embeddings_cache is None
            and getattr(self, "rate_limiter", None) is None  # 0.14.0 has none
            and not is_observed(self.callback_manager)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "embeddings_cache" and value is not None:
            value = RoleCache(value, self._shared)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[[], "NexusEmbedding"], tuple[()]]:
        # LlamaIndex's own way pickles every field twice and silently drops what fails.
        _, (_, fingerprint) = self._shared.__reduce__()
        fields = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name not in _PROCESS_FIELDS
        }
        return partial(type(self), **{**fields, "recorded_fingerprint": fingerprint}), ()
