"""The epochs: one loop for every objective, for plain layers and for layers that grow."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch

from nexus_integrations.training.heads import Heads
from nexus_integrations.training.objectives import Objective, batches

Keep = Literal["best", "last"]
"""Which epoch's weights training leaves: the one best on dev, or the last of every cycle."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: a cycle of `epochs` from `learning_rate` down to zero.

    The rate rises over the first `warmup` share of the steps and falls linearly over the rest.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    warmup: float = 0.1

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = (step + 1) / max(1.0, self.warmup * steps)
        falling = (steps - step) / (steps * (1 - self.warmup))
        return self.learning_rate * min(1.0, rising, falling)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training.

    `score` is the dev score after it (nDCG@10, or Spearman's ρ for sentence pairs), `dendrites` how
    many the heads had grown, `parameters` how many numbers were trained, `seconds` the time since
    training began.
    """

    epoch: int
    dendrites: int
    loss: float
    score: float
    parameters: int
    seconds: float


def cycle(
    heads: Heads,
    objective: Objective,
    schedule: Schedule,
    generator: torch.Generator,
    on_optimizer: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
) -> Iterator[tuple[float, float]]:
    """Train for one cycle; after each epoch yield its mean loss and the dev score."""
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    on_optimizer(optimizer)
    per_epoch = -(-objective.size // schedule.batch_size)
    steps = per_epoch * schedule.epochs
    for epoch in range(schedule.epochs):
        heads.train()
        objective.epoch(heads)
        total = 0.0
        for number, items in enumerate(batches(objective.size, schedule.batch_size, generator)):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(epoch * per_epoch + number, steps)
            optimizer.zero_grad(set_to_none=True)
            loss = objective.loss(heads, items)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(items)
        heads.eval()
        yield total / objective.size, objective.score(heads)


def fit_linear(
    objective: Objective,
    heads: Heads,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    *,
    keep: Keep = "best",
) -> None:
    """Train `heads` in place for one cycle; leave them at the epoch with the best dev score.

    With `keep` "last" they stay as the cycle leaves them.
    """
    generator = torch.Generator().manual_seed(seed)
    begun = perf_counter()
    best_score = -math.inf
    best: dict[str, torch.Tensor] = {}
    for number, (loss, score) in enumerate(cycle(heads, objective, schedule, generator), start=1):
        on_epoch(
            Epoch(
                epoch=number,
                dendrites=0,
                loss=loss,
                score=score,
                parameters=sum(parameter.numel() for parameter in heads.parameters()),
                seconds=perf_counter() - begun,
            )
        )
        if score > best_score or keep == "last":
            best_score = score
            best = {name: tensor.clone() for name, tensor in heads.state_dict().items()}
    heads.load_state_dict(best)
