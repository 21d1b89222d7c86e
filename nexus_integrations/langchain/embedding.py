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

from nexus_integrations.backends import Role
from nexus_integrations.data import check_texts
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.registry import SharedEncoder, in_background
from nexus_integrations.source import DEFAULT_MODEL

# Between parts of this many documents an async query gets its turn.
_ASYNC_PART = 256


class NexusEmbeddings(BaseModel, Embeddings):
    """An embedding model that runs on this machine, with dendritic heads where they were trained.

    The model loads on first use, once per process, and instances carry its name alone: they copy,
    pickle and go to worker processes at no cost. A model is bound on first use; whoever replaces
    its folder makes a new instance. Queries and documents are embedded under their own roles, as
    unit vectors; the async methods queue in one thread and leave the event loop free.

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
    device: str = Field(default="cpu", description="The torch device that the model runs on.")
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
        self._shared = SharedEncoder(self.model_name, self.device, self.recorded_fingerprint)

    @classmethod
    def from_encoder(cls, encoder: DendriticEncoder) -> "NexusEmbeddings":
        """Use an encoder that is in memory, on its device.

        Such an instance does not pickle (`TypeError`): save the encoder, and give its folder.
        """
        shared = SharedEncoder.of(encoder)
        embeddings = cls(model_name=shared.model, device=shared.device)
        embeddings._shared = shared
        return embeddings

    @property
    def encoder(self) -> DendriticEncoder:
        """The encoder behind this embedding model, loaded on first use.

        Raises `ValueError` when `model_name` or `device` were changed after construction.
        """
        if (self.model_name, self.device) != (self._shared.model, self._shared.device):
            raise ValueError(
                "model_name or device was changed after construction: make a new NexusEmbeddings"
            )
        return self._shared.get()

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
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        """Return the query's unit vector, as Python floats."""
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector per text while the event loop goes on."""
        check_texts(texts)
        rows: list[list[float]] = []
        for start in range(0, len(texts), _ASYNC_PART):
            part = texts[start : start + _ASYNC_PART]
            rows += await in_background(self._embed, part, "document")
        return rows

    async def aembed_query(self, text: str) -> list[float]:
        """Return the query's unit vector while the event loop goes on."""
        return (await in_background(self._embed, [text], "query"))[0]

    def _embed(self, texts: list[str], role: Role) -> list[list[float]]:
        encoder = self.encoder
        encode = encoder.encode_queries if role == "query" else encoder.encode_documents
        rows: list[list[float]] = encode(texts).tolist()
        if len(rows) != len(texts):
            raise RuntimeError(f"the encoder gave {len(rows)} vectors for {len(texts)} texts")
        return rows
