"""The heads while they are trained, and what they become afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.protocols import Floats

HeadsKind = Literal["query", "shared", "separate"]
"""Which vectors a head maps: the queries', both roles' by one head, or each role's by its own."""


class Residual(nn.Module):
    """h(v) = normalise(v + f(v)), where f starts as a zero `nn.Linear` that can grow dendrites."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        # skip_init: the usual initialisation would draw from the process's random state.
        self.layer = nn.utils.skip_init(nn.Linear, dimension, dimension, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors + self.layer(vectors), dim=-1)


class Heads(nn.Module):
    """The heads of one training run: `queries` and `documents` map vectors, (n, dimension)."""

    def __init__(self, dimension: int, side: HeadsKind) -> None:
        super().__init__()
        self.side = side
        self.first = Residual(dimension)
        self.second = Residual(dimension) if side == "separate" else None

    @classmethod
    def linear(cls, heads: Sequence[DendriticHead], side: HeadsKind) -> "Heads":
        """Return the modules of linear heads, one or, under side "separate", two."""
        modules = cls(heads[0].dimension, side)
        for part, head in zip((modules.first, modules.second), heads, strict=False):
            if part is not None:
                part.layer.weight.data = torch.from_numpy(head.weight.copy())
        return modules

    def queries(self, vectors: Tensor) -> Tensor:
        """Map query vectors."""
        mapped: Tensor = self.first(vectors)
        return mapped

    def documents(self, vectors: Tensor) -> Tensor:
        """Map document vectors; under side "query" they stay as they are."""
        if self.side == "query":
            return vectors
        mapped: Tensor = (self.second or self.first)(vectors)
        return mapped

    @property
    def maps_documents(self) -> bool:
        """Whether document vectors change in training."""
        return self.side != "query"


def exported(layer: nn.Module) -> DendriticHead:
    """Copy a trained layer, plain or perforated, into a `DendriticHead`.

    The attributes read from a perforated layer are those of `PAINeuronModule` in perforatedai 3.2.
    """
    if isinstance(layer, nn.Linear):
        return replace(DendriticHead.untrained(layer.in_features), weight=_array(layer.weight))
    perforated: Any = layer
    count = int(perforated.dendrite_modules_added)
    grown = perforated.dendrite_module
    head = DendriticHead.untrained(len(perforated.main_module.weight), count)
    head = replace(head, weight=_array(perforated.main_module.weight))
    if not count:
        return head
    between = head.between.copy()
    for number in range(1, count):
        between[number, :number] = _array(grown.dendrites_to_dendrites[number])
    return replace(
        head,
        dendrite_weight=np.stack([_array(grown.layers[i].weight) for i in range(count)]),
        between=between,
        top=_array(perforated.dendrites_to_top[count - 1]),
    )


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().cpu().numpy()
    return array
