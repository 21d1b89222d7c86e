"""The encoder as a LlamaIndex embedding model."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, computed_field

from nexus_integrations.backends import Backend, Precision, Role
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import DEFAULT_MODEL
from nexus_integrations.frameworks.shared_encoder import EncoderSettings, SharedEncoder
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


class NexusEmbedding(BaseEmbedding):
    """An embedding model that runs on this machine, with dendritic heads where they were trained.

    The model loads on first use, once per process, and instances carry its name alone: they copy,
    pickle and go to worker processes at no cost. A model is bound on first use; whoever replaces
    its folder makes a new instance. Queries and texts are embedded under their own roles, as unit
    vectors. Calls take turns, and those that wait at the same time are embedded together; the async
    methods leave the event loop free.

    Unknown arguments raise `ValueError`. Loading raises `FileNotFoundError` for a model that is
    nowhere and `ValueError` for a damaged one, or for one that is not of the recorded
    `fingerprint`.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model_name: Annotated[str, BeforeValidator(os.fspath)] = Field(
        default=DEFAULT_MODEL,
        description="A folder of a saved encoder or a sentence-transformers model, or a hub name.",
    )
    device: str = Field(default="cpu", description="The device that the model runs on.")
    backend: Backend = Field(
        default="auto",
        description="What runs the model: torch, onnx (ONNX Runtime), or the faster one that is "
        "there; the vectors are the same.",
    )
    precision: Precision | None = Field(
        default=None,
        description="float32, bfloat16, int8, or auto: the fastest with a negligible loss. By "
        "default float32, or what the model's folder was exported in.",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="How many threads compute; all cores by default."
    )
    micro_batching: bool = Field(
        default=True,
        description="Embed calls that wait at the same time together; none waits for others.",
    )
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
    recorded_fingerprint: str | None = Field(
        default=None,
        validation_alias="fingerprint",
        exclude=True,
        repr=False,
        description="What `to_dict` gave as fingerprint; a model of another one is not used.",
    )
    _shared: SharedEncoder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Name the encoder; nothing is loaded."""
        self._shared = SharedEncoder(self._settings(), self.recorded_fingerprint)
        self.embeddings_cache = self.embeddings_cache  # assignment makes it a RoleCache

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises this class."""
        return "NexusEmbedding"

    @classmethod
    def from_encoder(cls, encoder: DendriticEncoder) -> "NexusEmbedding":
        """Use an encoder that is in memory, as it runs.

        Such an instance does not pickle (`TypeError`): save the encoder, and give its folder.
        """
        shared = SharedEncoder.of(encoder)
        how = shared.settings
        embedding = cls(
            model_name=how.model, device=how.device, backend=how.backend, precision=how.precision
        )
        embedding._shared = shared
        return embedding

    @property
    def encoder(self) -> DendriticEncoder:
        """The encoder behind this embedding model, loaded on first use.

        Raises `ValueError` when the model, or how it runs, was changed after construction.
        """
        return self._bound().get()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that vectors depend on beside their text; loads the model.

        It is part of `to_dict`, so that LlamaIndex's ingestion cache tells models apart.
        """
        return self.encoder.fingerprint

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

    def _settings(self) -> EncoderSettings:
        return EncoderSettings(
            model=self.model_name,
            device=self.device,
            backend=self.backend,
            precision=self.precision,
            num_threads=self.num_threads,
        )

    def _bound(self) -> SharedEncoder:
        if self._settings() != self._shared.settings:
            raise ValueError(
                "the model, or how it runs, was changed after construction: make a new "
                "NexusEmbedding"
            )
        return self._shared

    def _is_direct(self) -> bool:
        """Tell whether the base class would do nothing about a query but embed it."""
        return (
            type(self) is NexusEmbedding  # another class may embed in another way
            and self.embeddings_cache is None
            and getattr(self, "rate_limiter", None) is None  # 0.14.0 has none
            and not is_observed(self.callback_manager)
        )

    def _embed(self, texts: list[str], role: Role) -> list[list[float]]:
        return self._bound().embed(texts, role, gather=self.micro_batching)

    async def _aembed(self, texts: list[str], role: Role) -> list[list[float]]:
        return await self._bound().aembed(texts, role, gather=self.micro_batching)

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
