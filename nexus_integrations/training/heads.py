"""The heads while they are trained, and what they become afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.protocols import Floats
from nexus_integrations.training.config import HeadsKind


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

    def __init__(self, dimension: int, kind: HeadsKind) -> None:
        super().__init__()
        self.kind = kind
        self.first = Residual(dimension)
        self.second = Residual(dimension) if kind == "separate" else None

    @classmethod
    def linear(cls, heads: Sequence[DendriticHead], kind: HeadsKind) -> "Heads":
        """Return the modules of linear heads: one or, of the kind "separate", two."""
        modules = cls(heads[0].dimension, kind)
        for part, head in zip(modules.parts, heads, strict=True):
            part.layer.weight.data = torch.from_numpy(head.weight.copy())
        return modules

    @property
    def parts(self) -> list[Residual]:
        """The heads, one or two: the query head first."""
        return [self.first] if self.second is None else [self.first, self.second]

    def queries(self, vectors: Tensor) -> Tensor:
        """Map query vectors."""
        mapped: Tensor = self.first(vectors)
        return mapped

    def documents(self, vectors: Tensor) -> Tensor:
        """Map document vectors; those of the kind "query" leave them as they are."""
        if self.kind == "query":
            return vectors
        mapped: Tensor = (self.second or self.first)(vectors)
        return mapped

    @property
    def maps_documents(self) -> bool:
        """Whether document vectors change in training."""
        return self.kind != "query"


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
