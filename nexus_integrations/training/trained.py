"""The weights that a run of training leaves, and their mean over several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.training.heads import Heads, exported
from nexus_integrations.training.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One head or two, and a trained backbone's weights; `tower` is empty where it was frozen."""

    heads: list[DendriticHead]
    tower: dict[str, Tensor]

    @classmethod
    def untrained(cls, objective: Objective, count: int = 1) -> "Trained":
        """Return heads that change nothing, and a copy of the backbone's weights as they are."""
        state = {} if objective.tower is None else objective.tower.state_dict()
        return cls(
            heads=[DendriticHead.untrained(objective.dimension) for _ in range(count)],
            tower={name: tensor.clone() for name, tensor in state.items()},
        )

    @classmethod
    def now(cls, heads: Heads, objective: Objective) -> "Trained":
        """Copy what the modules hold now."""
        return replace(
            cls.untrained(objective), heads=[exported(part.layer) for part in heads.parts]
        )

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Trained":
        """Take apart what `tensors` returned."""
        numbers = sorted(name.removesuffix(".top") for name in tensors if name.endswith(".top"))
        return cls(
            heads=[
                DendriticHead(
                    weight=tensors[f"{number}.weight"].numpy(),
                    dendrite_weight=tensors[f"{number}.dendrite_weight"].numpy(),
                    between=tensors[f"{number}.between"].numpy(),
                    top=tensors[f"{number}.top"].numpy(),
                )
                for number in numbers
            ],
            tower={
                name.removeprefix("tower."): tensor
                for name, tensor in tensors.items()
                if name.startswith("tower.")
            },
        )

    @classmethod
    def mean(cls, runs: "Sequence[Trained]") -> "Trained":
        """Return the mean of several runs, weight by weight; their heads are linear."""
        if len(runs) == 1:
            return runs[0]
        heads = [
            replace(parts[0], weight=np.mean([head.weight for head in parts], axis=0))
            for parts in zip(*(run.heads for run in runs), strict=True)
        ]
        tower = {
            name: torch.stack([run.tower[name] for run in runs]).mean(0)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in runs[0].tower.items()
        }
        return cls(heads=heads, tower=tower)

    @property
    def dendrites(self) -> int:
        """How many dendrites the heads have: the larger number of two."""
        return max(head.dendrites for head in self.heads)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, as a safetensors file takes it."""
        heads = {
            f"{number}.{name}": torch.from_numpy(array.copy())
            for number, head in enumerate(self.heads)
            for name, array in head.arrays.items()
        }
        return {**heads, **{f"tower.{name}": tensor for name, tensor in self.tower.items()}}
