"""How the backbone runs: by PyTorch, or by ONNX Runtime, which needs no PyTorch.

Nothing here imports either: `load_backbone` imports the one that it uses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from nexus_integrations.protocols import Floats

Role = Literal["query", "document"]
"""Which of the backbone's prompts and towers a text goes through."""

Backend = Literal["auto", "torch", "onnx"]
Precision = Literal["float32", "bfloat16", "int8", "auto"]

RUNTIME_MANIFEST = "runtime.json"
"""The file that tells a runtime folder, which needs no PyTorch, from a model's folder."""


class Backbone(Protocol):
    """A frozen model: text to unit vectors, by role; one instance serves the whole process."""

    @property
    def folder(self) -> Path | None:
        """The folder that it was loaded from; None for a model made in memory."""

    @property
    def backend(self) -> Literal["torch", "onnx"]:
        """What runs it."""

    @property
    def precision(self) -> Literal["float32", "bfloat16", "int8"]:
        """What it computes in, never "auto"."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", "mps"."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read; the rest is cut off."""

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all that a vector depends on beside its text.

        The same for every backend in float32, whose vectors are the same; another one for another
        precision.
        """

    @property
    def float32_digest(self) -> str:
        """The `digest` that this model has in float32."""

    def encode(self, texts: Sequence[str], role: Role) -> tuple[Floats, int]:
        """Return unit vectors, float32 (n, dimension), and how many texts were cut off.

        A text is cut off when it has more than `max_length` tokens under the role's prompt.
        """

    def save(self, folder: Path) -> None:
        """Write what `load_backbone` reads, into a new folder.

        A model's folder in its own precision, float32, whatever this runs in; from a runtime
        folder, a copy of it.
        """


def is_runtime_folder(folder: Path) -> bool:
    """Return whether `load_backbone` reads this folder without PyTorch."""
    return (folder / RUNTIME_MANIFEST).is_file()


def load_backbone(
    folder: Path,
    *,
    backend: Backend = "auto",
    precision: Precision | None = None,
    device: str = "cpu",
    num_threads: int | None = None,
) -> Backbone:
    """Return the process's one backbone of this folder, run in this way.

    `backend` "auto" is onnx on the CPU, its graph made on first use and kept in the user's cache
    folder, and torch on other devices, for bfloat16, for models that ONNX Runtime cannot run and
    where onnxruntime is not installed. `precision` None is float32 for a model's folder and a
    runtime folder's own; asking a runtime folder for another than its own raises `ValueError`.
    `num_threads` is how many compute, by default as many as the process has cores.

    Raises `ValueError` for a folder without a readable model and for a way in which the model does
    not run, and `ImportError` where the library that runs it is missing.
    """
    from nexus_integrations.backends.loading import load

    return load(folder, backend, precision, device, num_threads)
