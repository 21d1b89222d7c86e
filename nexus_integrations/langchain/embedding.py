"""The encoder as a LangChain embedding model."""

import os
from typing import Annotated, Any

from langchain_core.embeddings import Embeddings
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    computed_field,
)

from nexus_integrations.backends import Backend, Precision, Role
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import DEFAULT_MODEL
from nexus_integrations.frameworks.shared_encoder import EncoderSettings, SharedEncoder


class NexusEmbeddings(BaseModel, Embeddings):
    """An embedding model that runs on this machine, with dendritic heads where they were trained.

    The model loads on first use, once per process, and instances carry its name alone: they copy,
    pickle and go to worker processes at no cost. A model is bound on first use; whoever replaces
    its folder makes a new instance. Queries and documents are embedded under their own roles, as
    unit vectors. Calls take turns, and those that wait at the same time are embedded together; the
    async methods leave the event loop free.

    Unknown arguments raise `ValueError`. Loading raises `FileNotFoundError` for a model that is
    nowhere and `ValueError` for a damaged one, or for one that is not of the recorded
    `fingerprint`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: Annotated[str, BeforeValidator(os.fspath)] = Field(
        default=DEFAULT_MODEL,
        validation_alias=AliasChoices("model_name", "model"),
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
    recorded_fingerprint: str | None = Field(
        default=None,
        validation_alias="fingerprint",
        exclude=True,
        repr=False,
        description="What `model_dump` gave as fingerprint; a model of another one is not used.",
    )
    _shared: SharedEncoder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Name the encoder; nothing is loaded."""
        self._shared = SharedEncoder(self._settings(), self.recorded_fingerprint)

    @classmethod
    def from_encoder(cls, encoder: DendriticEncoder) -> "NexusEmbeddings":
        """Use an encoder that is in memory, as it runs.

        Such an instance does not pickle (`TypeError`): save the encoder, and give its folder.
        """
        shared = SharedEncoder.of(encoder)
        how = shared.settings
        embeddings = cls(
            model_name=how.model, device=how.device, backend=how.backend, precision=how.precision
        )
        embeddings._shared = shared
        return embeddings

    @property
    def encoder(self) -> DendriticEncoder:
        """The encoder behind this embedding model, loaded on first use.

        Raises `ValueError` when the model, or how it runs, was changed after construction.
        """
        return self._bound().get()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that vectors depend on beside their text; loads the model."""
        return self.encoder.fingerprint

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
        return self._bound().embed(texts, "document", gather=self.micro_batching)

    def embed_query(self, text: str) -> list[float]:
        """Return the query's unit vector, as Python floats."""
        return self._bound().embed([text], "query", gather=self.micro_batching)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector per text while the event loop goes on."""
        return await self._bound().aembed(texts, "document", gather=self.micro_batching)

    async def aembed_query(self, text: str) -> list[float]:
        """Return the query's unit vector while the event loop goes on."""
        return (await self._bound().aembed([text], "query", gather=self.micro_batching))[0]

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
                "NexusEmbeddings"
            )
        return self._shared
