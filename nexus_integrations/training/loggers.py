"""Epochs for TensorBoard or Weights & Biases: optional, off by default, figures alone.

Each logger is a context that gives a function for `finetune(..., on_epoch=...)`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from nexus_integrations.extras import extra
from nexus_integrations.training.record import Epoch

OnEpoch = Callable[[Epoch], None]


@contextmanager
def tensorboard_logger(folder: str | Path) -> Iterator[OnEpoch]:
    """Write events into a folder that `tensorboard --logdir` reads.

    Raises `ImportError` when the extra `tensorboard` is not installed.
    """
    with extra("tensorboard"):
        import tensorboard  # noqa: F401  (torch's own message does not name the extra)
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(folder))

    def on_epoch(epoch: Epoch) -> None:
        for name, value in _figures(epoch).items():
            writer.add_scalar(name, value, epoch.epoch)

    try:
        yield on_epoch
    finally:
        writer.close()


@contextmanager
def wandb_logger(
    project: str,
    *,
    folder: str | Path = ".",
    mode: Literal["offline", "online"] = "offline",
    settings: Mapping[str, float | str | bool | None] | None = None,
) -> Iterator[OnEpoch]:
    """Write a Weights & Biases run below a folder; in mode "offline" nothing leaves the machine.

    `settings` are shown beside the run: give `config.settings()`. No code, console output, machine
    figures or git state are recorded. Raises `ImportError` when the extra `wandb` is not installed.
    """
    # Its reports of its own errors are telemetry; it reads this when it is imported.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with extra("wandb"):
        import wandb
    run = wandb.init(
        project=project,
        dir=str(folder),
        mode=mode,
        config=dict(settings or {}),
        settings=wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
        ),
    )
    try:
        yield lambda epoch: run.log(_figures(epoch), step=epoch.epoch)
    finally:
        run.finish()


def _figures(epoch: Epoch) -> dict[str, float]:
    return {
        "loss": epoch.loss,
        "dev_score": epoch.score,
        "dendrites": epoch.dendrites,
        "parameters": epoch.parameters,
        "seconds": epoch.seconds,
    }
