"""The fields and the life of an embedding model, as both frameworks' classes have them."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, computed_field
from typing_extensions import Self

from nexus_integrations.backends import Backend, Precision, Role
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.encoder.source import DEFAULT_MODEL
from nexus_integrations.frameworks.shared_encoder import EncoderSettings, SharedEncoder

_OF_THE_ENCODER = {
    *("model_name", "device", "backend", "precision", "num_threads", "recorded_fingerprint"),
    "embeddings_cache",
}


class EmbeddingModel(BaseModel):
    """A model's name and settings, as pydantic fields, and the shared encoder that they name.

    The class of each framework inherits from this class first, then from the framework's own.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model_name: Annotated[str, BeforeValidator(os.fspath)] = Field(
        default=DEFAULT_MODEL,
        alias="model",
        description="A folder of a saved encoder or a sentence-transformers model, or a hub name.",
    )
    device: str = Field(default="cpu", description="The device that the model runs on.")
    backend: Backend = Field(
        default="auto",
        description="What runs the model: torch, onnx (ONNX Runtime), or auto, the faster one "
        "that is installed. The vectors are the same.",
    )
    precision: Precision | None = Field(
        default=None,
        description="float32, bfloat16, int8, or auto: the fastest with a negligible loss. By "
        "default float32, or the precision in which the model's folder was exported.",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="How many threads compute; all cores by default."
    )
    micro_batching: bool = Field(
        default=True,
        description="Embed calls that wait at the same time in one batch; no call waits for more.",
    )
    recorded_fingerprint: str | None = Field(
        default=None,
        validation_alias="fingerprint",
        exclude=True,
        repr=False,
        description="The fingerprint that a dump of this model recorded; a model with another "
        "fingerprint is refused.",
    )
    _shared: SharedEncoder = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Name the encoder; nothing is loaded."""
        self._shared = SharedEncoder(self._settings(), self.recorded_fingerprint)

    @classmethod
    def from_encoder(cls, encoder: DendriticEncoder) -> Self:
        """Use an encoder that is in memory, as it runs.

        Such an instance does not pickle (`TypeError`): save the encoder and give its folder.
        """
        shared = SharedEncoder.of(encoder)
        how = shared.settings
        made = cls(model=how.model, device=how.device, backend=how.backend, precision=how.precision)
        made._shared = shared
        return made

    def with_encoder(self, encoder: DendriticEncoder, folder: str | Path | None = None) -> Self:
        """Return this model with another encoder in its place, of `folder` where it was saved.

        Settings stay, and so does what the framework hands over, but for a cache.
        """
        if folder is None:
            made = self.from_encoder(encoder)
        else:
            made = type(self)(
                model=str(folder),
                device=self.device,
                backend=self.backend,
                precision=encoder.backbone.precision,  # what its heads were trained on
                num_threads=self.num_threads,
            )
        for name in type(self).model_fields.keys() - _OF_THE_ENCODER:
            setattr(made, name, getattr(self, name))
        return made

    @property
    def encoder(self) -> DendriticEncoder:
        """The encoder behind this embedding model, loaded on first use.

        Raises `ValueError` when the model or its settings were changed after construction.
        """
        return self._bound().get()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that vectors depend on beside their text; loads the model.

        It is part of every dump, so that caches of the frameworks tell models apart.
        """
        return self.encoder.fingerprint

    def _embed(self, texts: list[str], role: Role) -> list[list[float]]:
        return self._bound().embed(texts, role, gather=self.micro_batching)

    async def _aembed(self, texts: list[str], role: Role) -> list[list[float]]:
        return await self._bound().aembed(texts, role, gather=self.micro_batching)

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
                "the model or its settings were changed after construction: make a new "
                f"{type(self).__name__}"
            )
        return self._shared
