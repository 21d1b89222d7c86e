"""The dendritic head: a residual map on unit vectors, in plain PyTorch.

`perforatedai` grows such a head in training; what it grew is copied into this module, which needs
nothing but torch to be used.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from nexus_integrations.types import Floats

# Rows mapped at a time: 8,192 × 384 float32 and the dendrites' outputs stay within 50 MB.
_ROWS = 8192


class DendriticHead(nn.Module):
    """h(v) = normalise(v + f(v)) with f(v) = W v + Σᵢ tᵢ ⊙ oᵢ.

    oᵢ = σ(Dᵢ v + Σ_{j<i} c_ij ⊙ oⱼ) is the i-th dendrite: Dᵢ its layer, c_ij its input from earlier
    dendrites, tᵢ its weight on the output, σ the sigmoid. This is what a perforated `nn.Linear`
    computes in perforatedai 3.2. A head starts with f = 0: it then changes no vector, bit for bit.
    """

    def __init__(self, dimension: int, dendrites: int = 0) -> None:
        """Make a head for vectors of `dimension` with `dendrites` ≥ 0 dendrites, all weights 0."""
        super().__init__()
        if dimension < 1 or dendrites < 0:
            raise ValueError(f"no head of dimension {dimension} with {dendrites} dendrites")
        self.weight = nn.Parameter(torch.zeros(dimension, dimension))
        self.dendrite_weight = nn.Parameter(torch.zeros(dendrites, dimension, dimension))
        self.between = nn.Parameter(torch.zeros(dendrites, dendrites, dimension))
        self.top = nn.Parameter(torch.zeros(dendrites, dimension))

    @property
    def dimension(self) -> int:
        """The length of the vectors that the head maps."""
        return self.weight.shape[0]

    @property
    def dendrites(self) -> int:
        """The number of dendrites; 0 is a linear head."""
        return self.dendrite_weight.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether f = 0, so that the head changes no vector."""
        return not bool(self.weight.any() or self.top.any())

    def residual(self, vectors: Tensor) -> Tensor:
        """Return f(v) for each row: (n, dimension) to (n, dimension)."""
        residual = vectors @ self.weight.T  # (n, dimension)
        outputs: list[Tensor] = []
        for number in range(self.dendrites):
            inputs = vectors @ self.dendrite_weight[number].T  # (n, dimension)
            for earlier, output in enumerate(outputs):
                inputs = inputs + self.between[number, earlier] * output
            outputs.append(torch.sigmoid(inputs))
            residual = residual + self.top[number] * outputs[-1]
        return residual

    def forward(self, vectors: Tensor) -> Tensor:
        """Return h(v) for each row: (n, dimension) to unit rows of the same shape."""
        return functional.normalize(vectors + self.residual(vectors), dim=-1)

    def transform(self, vectors: Floats) -> Floats:
        """Map float32 rows, (n, dimension), to unit rows; an untrained head returns them as are.

        Raises `ValueError` for vectors of another dimension.
        """
        if vectors.shape[-1] != self.dimension:
            raise ValueError(
                f"the head maps vectors of dimension {self.dimension}, got {vectors.shape[-1]}"
            )
        if self.is_identity:
            return vectors.copy()
        mapped = np.empty_like(vectors)
        with torch.inference_mode():
            for start in range(0, len(vectors), _ROWS):
                rows = torch.from_numpy(vectors[start : start + _ROWS]).to(self.weight.device)
                mapped[start : start + _ROWS] = self(rows).cpu().numpy()
        return mapped

    def save(self, path: str | Path) -> None:
        """Write the weights as one safetensors file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(path), metadata={"format": "nexus-dendritic-head", "version": "1"})

    @classmethod
    def load(cls, path: str | Path) -> "DendriticHead":
        """Read a file that `save` wrote; raises `ValueError` when it is damaged or another's."""
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("format") != "nexus-dendritic-head":
                    raise ValueError(f"{path} holds no dendritic head")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        try:
            head = cls(tensors["weight"].shape[0], tensors["dendrite_weight"].shape[0])
            head.load_state_dict(tensors)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit together: {error}") from None
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError(f"{path} holds weights that are not finite")
        return head
