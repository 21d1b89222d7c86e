"""How the backbone runs: by PyTorch, or by ONNX Runtime, which needs no PyTorch.

Nothing here imports either: `load_backbone` imports the one that it uses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from nexus_integrations.types import Floats

Role = Literal["query", "document"]
"""Which of the backbone's prompts and towers a text goes through."""

Backend = Literal["auto", "torch", "onnx"]
Precision = Literal["float32", "bfloat16", "int8", "auto"]


class Backbone(Protocol):
    """A frozen model: text to unit vectors, by role; one instance serves the whole process."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    @property
    def max_length(self) -> int:
        """How many word pieces of a text are read; the rest is cut off."""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all that a vector depends on beside its text.

        The same for every backend in float32, whose vectors are the same; another one for another
        precision.
        """

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than `max_length` word pieces."""

    def encode(self, texts: Sequence[str], role: Role) -> Floats:
        """Return unit vectors, float32 (n, dimension)."""

    def save(self, folder: Path) -> None:
        """Write what `load_backbone` reads, into a new folder."""


def load_backbone(
    folder: Path,
    *,
    backend: Backend = "auto",
    precision: Precision = "float32",
    device: str = "cpu",
    num_threads: int | None = None,
) -> Backbone:
    """Return the process's one backbone of this folder, run in this way."""
    from nexus_integrations.backends.torch import TorchBackbone

    return TorchBackbone.load(folder, device)
