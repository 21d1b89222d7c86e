"""The runs of a training: one per seed, averaged weight by weight."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from nexus_integrations.progress import progress_bar
from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.growing import grow
from nexus_integrations.training.loop import Schedule, fit_linear
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.result import Epoch
from nexus_integrations.training.trained import Trained


def averaged(
    objective: Objective,
    config: FinetuneConfig,
    start: Mapping[str, Tensor],
    *,
    dendrites: int,
    dev_chooses: bool = True,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Trained, list[Epoch]]:
    """Train as many runs as are averaged; return the mean of their weights, and all epochs.

    `start` holds the weights that a trained backbone begins each run with. Without `dev_chooses`
    the dev set is not scored, and each run ends with its last epoch.
    """
    runs: list[Trained] = []
    history: list[Epoch] = []
    for number in range(config.average):
        if objective.tower is not None:
            objective.tower.load_state_dict(start)
        done, elapsed = len(history), history[-1].seconds if history else 0.0

        def tell(epoch: Epoch, done: int = done, elapsed: float = elapsed) -> None:
            epoch = replace(epoch, epoch=done + epoch.epoch, seconds=elapsed + epoch.seconds)
            history.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)

        seed = config.seed + number
        own = checkpoint
        if checkpoint is not None and config.average > 1:
            own = checkpoint.part(f"seed-{seed}")
        one = replace(config, seed=seed)
        runs.append(_run(objective, one, dendrites, dev_chooses, own, tell))
    return Trained.mean(runs), history


def _run(
    objective: Objective,
    config: FinetuneConfig,
    dendrites: int,
    dev_chooses: bool,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None],
) -> Trained:
    schedule, kind = Schedule.of(config), config.heads or "shared"
    total = schedule.length(0) + dendrites * schedule.epochs
    title = "fine-tune" if dev_chooses else "refit"
    with progress_bar(total=total, desc=title, unit="epoch") as bar:

        def tell(epoch: Epoch) -> None:
            on_epoch(epoch)
            bar.update()
            scored = {"dev": f"{epoch.score:.4f}"} if dev_chooses else {}
            bar.set_postfix(dendrites=epoch.dendrites, **scored)

        if not dendrites:
            return fit_linear(
                *(objective, kind, schedule, config.seed, tell),
                dev_chooses=dev_chooses,
                checkpoint=checkpoint,
            )
        return grow(
            *(objective, kind, schedule),
            dendrites=dendrites,
            tries=config.tries or 1,
            seed=config.seed,
            dev_chooses=dev_chooses,
            on_epoch=tell,
            checkpoint=checkpoint,
        )
