"""How a head is trained: the optimizer, the learning rate, an epoch, and a run of linear heads.

`growing.py` uses the same optimizer and epochs for heads that grow dendrites.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch

from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.config import FinetuneConfig, HeadsKind
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.result import Epoch
from nexus_integrations.training.trained import Trained


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

    @classmethod
    def of(cls, config: FinetuneConfig) -> "Schedule":
        """Return the schedule that the settings ask for."""
        return cls(
            epochs=config.epochs,
            first_epochs=config.warmup_epochs,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            weight_decay=config.weight_decay,
            constant=not config.decay,
            backbone_rate=config.backbone_learning_rate or 0.0,
        )

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
    objective.begin_epoch(heads)
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
    kind: HeadsKind,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    *,
    dev_chooses: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train linear heads for one cycle; return them as of the epoch with the best dev score.

    Without `dev_chooses` nothing is scored, and the last epoch is returned. With `checkpoint` a run
    is resumed after the last epoch that it holds.
    """
    heads = Heads(objective.dimension, kind)
    generator = torch.Generator().manual_seed(seed)
    optimizer = new_optimizer(heads, objective, schedule)
    done = checkpoint.history() if checkpoint else []
    best_score, best = -math.inf, Trained.untrained(objective, len(heads.parts))
    with own_randomness(seed):
        if checkpoint is not None and done:
            checkpoint.restore(heads, objective, optimizer, generator)
            best_score = max(epoch.score for epoch in done)
            best = Trained.of_tensors(checkpoint.best())
            objective.begin_epoch(heads)
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
                score=objective.score(heads) if dev_chooses else math.nan,
                parameters=count_parameters(heads, objective),
                seconds=perf_counter() - begun,
            )
            done.append(row)
            if improved := row.score > best_score or not dev_chooses:
                best_score, best = row.score, Trained.now(heads, objective)
            if checkpoint is not None:
                if improved:
                    checkpoint.save_best(best.tensors())
                checkpoint.save(done, heads, objective, optimizer, generator)
            on_epoch(row)
    return best


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch for a backbone's dropout; the process gets its own random state back."""
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
        # perforatedai keeps a copy of each layer to make dendrites of; it is no part of the map.
        if parameter.requires_grad and ".parent_module." not in name
    )


def _train(heads: Heads, objective: Objective, training: bool) -> None:
    heads.train(training)
    if objective.tower is not None:
        objective.tower.train(training)
