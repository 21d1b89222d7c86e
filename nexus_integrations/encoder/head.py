"""The dendritic head: a residual map on unit vectors, as plain arrays.

`perforatedai` grows such a head in training; what it grew is copied into this class, which needs
nothing but numpy to be used.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nexus_integrations.protocols import Floats

# Rows mapped at a time: 8,192 × 384 float32 and the dendrites' outputs stay within 75 MB.
_ROWS = 8192


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DendriticHead:
    """h(v) = normalise(v + f(v)) with f(v) = W v + Σᵢ tᵢ ⊙ oᵢ.

    oᵢ = σ(Dᵢ v + Σ_{j<i} c_ij ⊙ oⱼ) is the i-th dendrite: Dᵢ its layer, c_ij its input from earlier
    dendrites, tᵢ its weight on the output, σ the sigmoid. This is what a perforated `nn.Linear`
    computes in perforatedai 3.2. The arrays are copied, as float32, and cannot be written to.
    Raises `ValueError` when their shapes do not fit together.
    """

    weight: Floats
    """W, (dimension, dimension)."""
    dendrite_weight: Floats
    """Dᵢ, (dendrites, dimension, dimension)."""
    between: Floats
    """c_ij, (dendrites, dendrites, dimension), of which j < i alone is read."""
    top: Floats
    """tᵢ, (dendrites, dimension)."""

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            own = np.array(array, dtype=np.float32, order="C")
            own.flags.writeable = False
            object.__setattr__(self, name, own)
        wide, many = self.weight.shape[-1:], self.top.shape[:1]
        expected = [wide * 2, many + wide * 2, many * 2 + wide, many + wide]
        shapes = {name: array.shape for name, array in self.arrays.items()}
        if list(shapes.values()) != expected or self.weight.ndim != 2 or self.weight.size == 0:
            raise ValueError(f"the shapes of a head's arrays do not fit together: {shapes}")

    @classmethod
    def untrained(cls, dimension: int, dendrites: int = 0) -> "DendriticHead":
        """Return a head with f = 0, all weights 0: it changes no vector, bit for bit."""
        if dimension < 1 or dendrites < 0:
            raise ValueError(f"no head of dimension {dimension} with {dendrites} dendrites")
        return cls(
            weight=np.zeros((dimension, dimension), dtype=np.float32),
            dendrite_weight=np.zeros((dendrites, dimension, dimension), dtype=np.float32),
            between=np.zeros((dendrites, dendrites, dimension), dtype=np.float32),
            top=np.zeros((dendrites, dimension), dtype=np.float32),
        )

    @property
    def arrays(self) -> dict[str, Floats]:
        """All weights by name."""
        names = ("weight", "dendrite_weight", "between", "top")
        return {name: getattr(self, name) for name in names}

    @property
    def dimension(self) -> int:
        """The length of the vectors that the head maps."""
        return len(self.weight)

    @property
    def dendrites(self) -> int:
        """The number of dendrites; 0 is a linear head."""
        return len(self.top)

    @cached_property
    def is_identity(self) -> bool:
        """Whether f = 0, so that the head changes no vector."""
        return not bool(self.weight.any() or self.top.any())

    def residual(self, vectors: Floats) -> Floats:
        """Return f(v) for each row: (n, dimension) to (n, dimension)."""
        residual: Floats = vectors @ self.weight.T  # (n, dimension)
        outputs: list[Floats] = []
        for number in range(self.dendrites):
            inputs = vectors @ self.dendrite_weight[number].T  # (n, dimension)
            for earlier, output in enumerate(outputs):
                inputs += self.between[number, earlier] * output
            outputs.append(_sigmoid(inputs))
            residual += self.top[number] * outputs[-1]
        return residual

    def transform(self, vectors: Floats) -> Floats:
        """Map float32 rows, (n, dimension), to unit rows; an untrained head returns them as are.

        Raises `ValueError` for vectors of another dimension.
        """
        if vectors.shape[-1] != self.dimension:
            raise ValueError(
                f"the head maps vectors of dimension {self.dimension}, got {vectors.shape[-1]}"
            )
        mapped = np.array(vectors, dtype=np.float32)
        if self.is_identity:
            return mapped
        for start in range(0, len(mapped), _ROWS):
            rows = mapped[start : start + _ROWS]
            rows += self.residual(rows)
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]  # (rows, 1)
            rows /= np.maximum(lengths, np.float32(1e-12))
        return mapped

    def save(self, path: str | Path) -> None:
        """Write the weights as one safetensors file."""
        metadata = {"format": "nexus-dendritic-head", "version": "1"}
        save_file(self.arrays, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "DendriticHead":
        """Read a file that `save` wrote; raises `ValueError` when it is damaged or another's."""
        try:
            with safe_open(str(path), framework="np") as file:
                if (file.metadata() or {}).get("format") != "nexus-dendritic-head":
                    raise ValueError(f"{path} holds no dendritic head")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        try:
            head = cls(**arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not fit together: {error}") from None
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"{path} holds weights that are not finite")
        return head


def digest_with_heads(backbone: str, *heads: DendriticHead | None) -> str:
    """Return the SHA-256, in hex, over a backbone's digest and the heads on its vectors."""
    digest = hashlib.sha256(backbone.encode())
    for head in heads:
        # An untrained head changes no vector, so it does not change the fingerprint.
        arrays = {} if head is None or head.is_identity else head.arrays
        digest.update(f"head {len(arrays)}".encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _sigmoid(inputs: Floats) -> Floats:
    # By the hyperbolic tangent, which overflows for no input: σ(x) = (1 + tanh(x/2)) / 2.
    inputs *= np.float32(0.5)
    np.tanh(inputs, out=inputs)
    inputs += 1
    inputs *= np.float32(0.5)
    return inputs
