"""The epochs: one loop for every objective, for plain layers and for layers that grow."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.heads import Heads, HeadsKind, exported
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.record import Epoch

Keep = Literal["best", "last"]
"""Which epoch's weights training leaves: the one best on dev, or the last of every cycle."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: cycles of `epochs`, from `learning_rate` down to zero.

    The first cycle, before any dendrite, may have a length of its own, `first_epochs`. The rate
    rises over the first `warmup` share of a cycle's steps and falls linearly over the rest, or
    stays as it is where `constant`. A backbone that is trained has its own, `backbone_rate`.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    first_epochs: int | None = None
    warmup: float = 0.1
    constant: bool = False
    backbone_rate: float = 0.0

    def length(self, cycle: int) -> int:
        """Return the number of epochs of a cycle, counted from 0."""
        return self.first_epochs if cycle == 0 and self.first_epochs else self.epochs

    def share(self, step: int, steps: int) -> float:
        """Return the share of the learning rate at a step of a cycle, counted from 0."""
        if self.constant:
            return 1.0
        rising = (step + 1) / max(1.0, self.warmup * steps)
        falling = (steps - step) / (steps * (1 - self.warmup))
        return min(1.0, rising, falling)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves: one head or two, and a trained backbone's weights.

    `tower` is empty where the backbone was frozen.
    """

    heads: list[DendriticHead]
    tower: dict[str, Tensor]

    @classmethod
    def now(cls, heads: Heads, objective: Objective) -> "Trained":
        """Copy what the modules hold now."""
        parts = [heads.first] if heads.second is None else [heads.first, heads.second]
        state = {} if objective.tower is None else objective.tower.state_dict()
        return cls(
            heads=[exported(part.layer) for part in parts],
            tower={name: tensor.clone() for name, tensor in state.items()},
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

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, as a safetensors file takes it."""
        heads = {
            f"{number}.{name}": torch.from_numpy(array.copy())
            for number, head in enumerate(self.heads)
            for name, array in head.arrays.items()
        }
        return {**heads, **{f"tower.{name}": tensor for name, tensor in self.tower.items()}}


def new_optimizer(heads: Heads, objective: Objective, schedule: Schedule) -> torch.optim.AdamW:
    """Return the optimizer of a cycle."""
    groups: list[dict[str, object]] = [
        {"params": list(heads.parameters()), "highest": schedule.learning_rate}
    ]
    if objective.tower is not None:
        parameters = list(objective.tower.parameters())
        groups.append({"params": parameters, "highest": schedule.backbone_rate})
    # Fused: one pass over a backbone's weights instead of a dozen.
    return torch.optim.AdamW(
        groups,
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        fused=objective.tower is not None,
    )


def train_epoch(
    heads: Heads,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    cycle: int,
    epoch: int,
) -> float:
    """Train for one epoch of a cycle, both counted from 0; return its mean loss."""
    per_epoch = -(-objective.size // schedule.batch_size)
    steps = per_epoch * schedule.length(cycle)
    _train(heads, objective, True)
    objective.epoch(heads)
    total = 0.0
    for number, items in enumerate(objective.batches(schedule.batch_size, generator)):
        share = schedule.share(epoch * per_epoch + number, steps)
        for group in optimizer.param_groups:
            group["lr"] = share * group["highest"]
        optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(heads, items)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(items)
    _train(heads, objective, False)
    return total / objective.size


def fit_linear(
    objective: Objective,
    side: HeadsKind,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    *,
    keep: Keep = "best",
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train linear heads for one cycle; return them as of the epoch with the best dev score.

    With `keep` "last" they are as the cycle leaves them. With `checkpoint` training goes on behind
    the last epoch that it holds.
    """
    heads = Heads(objective.dimension, side)
    generator = torch.Generator().manual_seed(seed)
    optimizer = new_optimizer(heads, objective, schedule)
    done = [Epoch(**row) for row in checkpoint.history()] if checkpoint else []
    best_score, best = -math.inf, Trained(heads=[], tower={})
    with own_randomness(objective, seed):
        if checkpoint is not None and done:
            checkpoint.restore(heads, objective, optimizer, generator)
            best_score = max(epoch.score for epoch in done)
            best = Trained.of_tensors(checkpoint.best())
        for epoch in done:
            on_epoch(epoch)
        begun = perf_counter() - (done[-1].seconds if done else 0.0)
        for number in range(len(done), schedule.length(0)):
            loss = train_epoch(
                heads, objective, optimizer, schedule, generator, cycle=0, epoch=number
            )
            row = Epoch(
                epoch=number + 1,
                dendrites=0,
                loss=loss,
                score=dev_score(objective, heads, keep),
                parameters=count_parameters(heads, objective),
                seconds=perf_counter() - begun,
            )
            done.append(row)
            if improved := row.score > best_score or keep == "last":
                best_score, best = row.score, Trained.now(heads, objective)
            if checkpoint is not None:
                if improved:
                    checkpoint.save_best(best.tensors())
                checkpoint.save(done, heads, objective, optimizer, generator)
            on_epoch(row)
    return best


def dev_score(objective: Objective, heads: Heads, keep: Keep) -> float:
    """Return the dev score where it chooses, else NaN: for a trained backbone it takes a while."""
    return objective.score(heads) if keep == "best" else math.nan


@contextmanager
def own_randomness(objective: Objective, seed: int) -> Iterator[None]:
    """Seed torch for a backbone's dropout; the process gets its own random state back."""
    if objective.tower is None:
        yield
        return
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


def count_parameters(heads: Heads, objective: Objective) -> int:
    """Return how many numbers are trained."""
    modules = [heads] if objective.tower is None else [heads, objective.tower]
    return sum(
        parameter.numel()
        for module in modules
        for name, parameter in module.named_parameters()
        # perforatedai keeps a copy of each layer to make dendrites of, no part of its map.
        if parameter.requires_grad and ".parent_module." not in name
    )


def _train(heads: Heads, objective: Objective, training: bool) -> None:
    heads.train(training)
    if objective.tower is not None:
        objective.tower.train(training)
