"""The child process in which perforatedai grows dendrites; `growing.py` starts it.

No other file imports perforatedai.
"""

import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import IO, Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.loop import (
    Schedule,
    count_parameters,
    new_optimizer,
    own_randomness,
    train_epoch,
)
from nexus_integrations.training.messages import receive, send, unpacked
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.result import Epoch
from nexus_integrations.training.trained import Trained


def run_child() -> None:
    """Do the job that standard input brings; called in a fresh interpreter by `grow`."""
    folder = os.getcwd()
    jobs, events = _take_over_streams()
    message = receive(jobs)
    if message is None:
        _vanish(folder)
    threading.Thread(target=_end_with_parent, args=(jobs, folder), daemon=True).start()

    def emit(event: str, tensors: dict[str, Tensor] | None = None, **content: Any) -> None:
        try:
            send(events, {"event": event, **content}, tensors or {})
        except OSError:  # nobody listens any more
            _vanish(folder)

    job, tensors = message
    torch.set_num_threads(job["threads"])
    try:
        import perforatedai.globals_perforatedai
        import perforatedai.utils_perforatedai  # noqa: F401
    except BaseException as error:
        # Compiled packages fail to import in many ways; SystemExit is one of perforatedai's.
        emit("import-error", message=f"{type(error).__name__}: {error}")
        return
    try:
        tower = None
        if job["dropout"] is not None:
            from nexus_integrations.training.tower import Tower

            tower = Tower.load(Path("backbone"), dropout=job["dropout"])
        growth = _Growth(
            unpacked(job, tensors, tower),
            Schedule(**job["schedule"]),
            lambda epoch: emit("epoch", epoch=asdict(epoch)),
            job["checkpoint"] and Checkpoint(Path(job["checkpoint"][0]), job["checkpoint"][1]),
            dev_chooses=job["growth"].pop("dev_chooses"),
        )
        result = growth.run(job["heads"], **job["growth"])
    except BaseException as error:
        emit("error", message=f"{type(error).__name__}: {error}")
    else:
        emit("done", result)


def _take_over_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the two pipes for ourselves; all else that reads or prints gets nothing or the log."""
    jobs, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # the parent opened 2 on the log
    sys.stdin = open(os.devnull)  # noqa: SIM115
    return jobs, events


def _end_with_parent(jobs: IO[bytes], folder: str) -> None:
    jobs.read(1)  # returns when the parent closes the pipe or dies
    _vanish(folder)


def _vanish(folder: str) -> NoReturn:
    """End this process and leave nothing behind; training may just be writing a file."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
    os._exit(1)


class _Growth:
    """A run in which heads grow, epoch by epoch."""

    def __init__(
        self,
        objective: Objective,
        schedule: Schedule,
        on_epoch: Callable[[Epoch], None],
        checkpoint: Checkpoint | None,
        *,
        dev_chooses: bool,
    ) -> None:
        self.objective = objective
        self.schedule = schedule
        self.on_epoch = on_epoch
        self.checkpoint = checkpoint
        self.dev_chooses = dev_chooses
        # perforatedai continues from the heads with the best score. A rising score keeps the last.
        self.rising = not dev_chooses or objective.tower is not None
        self.epochs = checkpoint.history() if checkpoint else []
        self.restored = len(self.epochs)
        self.number = 0
        self.best: dict[str, Tensor] = {}
        self.best_score = -math.inf
        if checkpoint is not None and self.epochs:
            self.best = checkpoint.best()
            self.best_score = max(epoch.score for epoch in self.epochs)
        self.begun = perf_counter() - (self.epochs[-1].seconds if self.epochs else 0.0)

    def run(self, kind: Any, *, dendrites: int, tries: int, seed: int) -> dict[str, Tensor]:
        """Grow up to `dendrites`; return the weights of the best epoch, or of the last."""
        with own_randomness(seed):
            heads = Heads(self.objective.dimension, kind)
            tracker, heads = _perforated(heads, dendrites, tries, seed)
            generator = torch.Generator().manual_seed(seed)
            cycle, finished = 0, False
            while not finished:
                optimizer = new_optimizer(heads, self.objective, self.schedule)
                tracker.set_optimizer_instance(optimizer)
                heads, finished = self._cycle(cycle, tracker, heads, optimizer, generator)
                cycle += 1
        return self.best

    def _cycle(
        self,
        cycle: int,
        tracker: Any,
        heads: Heads,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> tuple[Heads, bool]:
        """Run a cycle; return the heads, with one dendrite more, and whether growth has ended."""
        length, start = self.schedule.length(cycle), self.number
        for within in range(length):
            self.number = start + within + 1
            new = self.number > self.restored
            improved = False
            if new:
                improved = self._train(cycle, within, tracker, heads, optimizer, generator)
            else:  # its score is told again, so that the heads take the shape they had
                self.objective.loss(heads, torch.arange(1)).backward()  # gives dendrites a shape
            epoch = self.epochs[self.number - 1]
            ends = within + 1 == length
            told = float(self.number) if self.rising else epoch.score
            heads, _, finished = tracker.add_validation_score(told, heads, force_switch=ends)
            if self.checkpoint is not None and new:
                if improved:
                    self.checkpoint.save_best(self.best)
                self.checkpoint.save(
                    self.epochs, heads, self.objective, None if ends else optimizer, generator
                )
            self.on_epoch(epoch)
            if finished:
                return heads, True
        return heads, False

    def _train(
        self,
        cycle: int,
        within: int,
        tracker: Any,
        heads: Heads,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> bool:
        """Train and record an epoch; return whether it is the one to keep."""
        if self.checkpoint is not None and self.restored and self.number == self.restored + 1:
            self.checkpoint.restore(heads, self.objective, optimizer, generator)
        loss = train_epoch(
            heads, self.objective, optimizer, self.schedule, generator, cycle=cycle, epoch=within
        )
        epoch = Epoch(
            epoch=self.number,
            dendrites=tracker.member_vars["num_dendrites_added"],
            loss=loss,
            score=self.objective.score(heads) if self.dev_chooses else math.nan,
            parameters=count_parameters(heads, self.objective),
            seconds=perf_counter() - self.begun,
        )
        self.epochs.append(epoch)
        # perforatedai's own best ignores gains below its threshold.
        improved = epoch.score > self.best_score or not self.dev_chooses
        if improved:
            self.best, self.best_score = _weights(heads, self.objective), epoch.score
        return improved


def _perforated(heads: Heads, dendrites: int, tries: int, seed: int) -> tuple[Any, Heads]:
    """Return perforatedai's tracker and the heads that can grow."""
    from perforatedai import globals_perforatedai as GPA
    from perforatedai import utils_perforatedai as UPA

    settings = GPA.pc
    settings.set_configuration_confirmed(True)
    settings.set_unwrapped_modules_confirmed(True)
    settings.set_weight_decay_accepted(True)
    settings.set_testing_dendrite_capacity(False)
    settings.set_verbose(False)
    settings.set_silent(True)
    settings.set_device(torch.device("cpu"))
    settings.set_test_saves(False)
    settings.set_max_dendrites(dendrites)
    settings.set_max_dendrite_tries(tries)
    # A cycle of the schedule ends where we say: only then may a dendrite be added.
    settings.set_switch_mode(settings.DOING_NO_SWITCH)
    if settings.get_dashboard_events_enabled():
        raise RuntimeError("perforatedai would send events to a dashboard: its default changed")
    torch.manual_seed(seed)
    heads = UPA.perforate_model(heads, save_name="growth", maximizing_score=True)
    tracker = GPA.pai_tracker
    tracker.save_graphs = lambda *_: None  # nobody sees these figures, and they take most of a run
    return tracker, heads


def _weights(heads: Heads, objective: Objective) -> dict[str, Tensor]:
    """Return the heads' and the tower's weights, and outputs to compare a copy with."""
    generator = torch.Generator().manual_seed(0)
    probe = normalize(torch.randn(64, objective.dimension, generator=generator), dim=1)
    tensors = {**Trained.now(heads, objective).tensors(), "probe": probe}
    for number, part in enumerate(heads.parts):
        with torch.no_grad():
            tensors[f"{number}.outputs"] = part.layer(probe).clone()
    return tensors
