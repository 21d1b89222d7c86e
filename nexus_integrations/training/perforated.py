"""Growing dendrites with perforatedai, in a child process of its own.

perforatedai keeps its state in module globals, prints, draws, writes files into the working
directory, and can ask questions, start a debugger or end the process. So it runs in a child with a
temporary working directory and no standard input. The child gets arrays and numbers, sends events
back as JSON lines, and leaves plain tensors; nothing of it reaches the caller's process. No other
file imports perforatedai.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import IO, Any, NoReturn

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.fit import (
    Keep,
    Schedule,
    Trained,
    count_parameters,
    dev_score,
    new_optimizer,
    own_randomness,
    train_epoch,
)
from nexus_integrations.training.heads import Heads, HeadsKind
from nexus_integrations.training.objectives import (
    Objective,
    RetrievalObjective,
    SimilarityObjective,
    to_numbers,
    to_tensors,
)
from nexus_integrations.training.record import Epoch

_INSTALL = (
    'pip install "nexus-integrations[dendrites]" (perforatedai has wheels for CPython 3.10-3.12)'
)
# A copied head must give the child's own outputs to within float32 rounding.
_TOLERANCE = 1e-6


def require_perforatedai() -> None:
    """Raise `ImportError`, with the command that installs it, when perforatedai is missing."""
    if find_spec("perforatedai") is None:
        raise ImportError(
            f"growing dendrites needs perforatedai: {_INSTALL}, or train with dendrites=0"
        )


def grow(
    objective: Objective,
    side: HeadsKind,
    schedule: Schedule,
    *,
    dendrites: int,
    tries: int,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    keep: Keep = "best",
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train heads, adding up to `dendrites` one at a time while the dev score rises.

    With `keep` "last" every cycle runs to its end and exactly `dendrites` are added, whatever the
    dev score. So they are where a backbone is trained as well: each cycle goes on from the last
    epoch, since heads of an earlier one would not fit the backbone, and the best epoch of all is
    returned. `checkpoint` is for such runs alone. Raises `ImportError` when perforatedai cannot be
    imported and `RuntimeError` when the child ends early or its head cannot be copied exactly.
    """
    require_perforatedai()
    with tempfile.TemporaryDirectory(prefix="nexus-dendrites-") as name:
        folder = Path(name)
        save_file(to_tensors(objective), str(folder / "job.safetensors"))
        if objective.tower is not None:
            objective.tower.save(folder / "backbone")
        job = {
            "dropout": objective.tower is not None and objective.tower.dropout,
            "kind": objective.kind,
            "numbers": to_numbers(objective),
            "side": side,
            "schedule": asdict(schedule),
            "dendrites": dendrites,
            "tries": tries,
            "seed": seed,
            "keep": keep,
            "threads": torch.get_num_threads(),
            "checkpoint": checkpoint
            and {"folder": str(checkpoint.folder.resolve()), "identity": checkpoint.identity},
        }
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "child.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import run_child; run_child()"],
                cwd=folder,
                # Held open for the child's life: when this process dies, the child reads its end.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": _search_path(),
                    "MPLBACKEND": "Agg",
                    # Threads that spin while they wait make a busy machine many times slower.
                    "OMP_WAIT_POLICY": "PASSIVE",
                },
                # Ctrl-C is this process's to handle: it ends the child below.
                start_new_session=True,
            )
        try:
            _follow(child, folder, on_epoch)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        return _collect(folder)


def _follow(
    child: "subprocess.Popen[bytes]", folder: Path, on_epoch: Callable[[Epoch], None]
) -> None:
    """Hand on the child's epochs until it says that it is done."""
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "epoch":
            on_epoch(Epoch(**event["epoch"]))
        elif event["event"] == "import-error":
            raise ImportError(f"perforatedai cannot be imported ({event['message']}): {_INSTALL}")
        elif event["event"] == "error":
            raise RuntimeError(f"growing dendrites failed: {event['message']}")
        elif event["event"] == "done":
            return
    status = child.wait()
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    log = (folder / "child.log").read_text(errors="replace").strip().splitlines()
    raise RuntimeError(
        f"the process that grows dendrites ended early, {how}"
        + (" (the system may have run out of memory)" if status == -9 else "")
        + (f"; its last words: {log[-1]}" if log else "")
    )


def _collect(folder: Path) -> Trained:
    """Read what the child left and hold the heads against the child's own outputs."""
    tensors = load_file(str(folder / "result.safetensors"))
    trained = Trained.of_tensors(tensors)
    for number, head in enumerate(trained.heads):
        outputs = head.residual(tensors["probe"].numpy())
        error = float(np.abs(outputs - tensors[f"{number}.outputs"].numpy()).max())
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the copied head differs from the grown one by {error:.1e} (at most "
                f"{_TOLERANCE:.0e} is rounding): this perforatedai computes something else"
            )
    return trained


def _search_path() -> str:
    """The child finds what this process finds, also when started from a source folder."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)


# What follows runs in the child.


def run_child() -> None:
    """Do the job in the working directory; called in a fresh interpreter by `grow`."""
    folder = os.getcwd()
    events = _take_over_streams(folder)

    def emit(event: str, **content: Any) -> None:
        try:
            events.write(json.dumps({"event": event, **content}).encode() + b"\n")
            events.flush()
        except OSError:  # nobody listens any more
            _vanish(folder)

    job = json.loads(Path("job.json").read_text())
    torch.set_num_threads(job["threads"])
    try:
        import perforatedai.globals_perforatedai
        import perforatedai.utils_perforatedai  # noqa: F401
    except BaseException as error:
        # Compiled packages fail to import in many ways; SystemExit is one of perforatedai's.
        emit("import-error", message=f"{type(error).__name__}: {error}")
        return
    try:
        objective = _read_objective(job)
        place = job["checkpoint"]
        with own_randomness(objective, job["seed"]):
            result = _grow_in_child(
                objective,
                Heads(objective.dimension, job["side"]),
                Schedule(**job["schedule"]),
                dendrites=job["dendrites"],
                tries=job["tries"],
                seed=job["seed"],
                keep=job["keep"],
                on_epoch=lambda epoch: emit("epoch", epoch=asdict(epoch)),
                checkpoint=place and Checkpoint(Path(place["folder"]), place["identity"]),
            )
        save_file(result, "result.safetensors")
    except BaseException as error:
        emit("error", message=f"{type(error).__name__}: {error}")
    else:
        emit("done")


def _read_objective(job: dict[str, Any]) -> Objective:
    parts: dict[str, Any] = {**load_file("job.safetensors"), **job["numbers"]}
    for frozen in (RetrievalObjective, SimilarityObjective):
        if job["kind"] == frozen.kind:
            return frozen(**parts)
    # Imported where it is needed: sentence-transformers takes seconds.
    from nexus_integrations.training.texts import TextRetrievalObjective, TextSimilarityObjective
    from nexus_integrations.training.tower import Tower

    tower = Tower.load(Path("backbone"), dropout=job["dropout"])
    if job["kind"] == TextRetrievalObjective.kind:
        return TextRetrievalObjective(tower=tower, **parts)
    return TextSimilarityObjective(tower=tower, **parts)


def _take_over_streams(folder: str) -> IO[bytes]:
    """Keep the two pipes for ourselves; all else that reads or prints gets nothing or the log."""
    lifeline, events = os.dup(0), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # the parent opened 2 on the log
    sys.stdin = open(os.devnull)  # noqa: SIM115

    def end_with_parent() -> None:
        os.read(lifeline, 1)  # returns when the parent closes the pipe or dies
        _vanish(folder)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return events


def _vanish(folder: str) -> NoReturn:
    """End this process and leave nothing behind; training may just be writing a file."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
    os._exit(1)


def _grow_in_child(
    objective: Objective,
    heads: Heads,
    schedule: Schedule,
    *,
    dendrites: int,
    tries: int,
    seed: int,
    keep: Keep,
    on_epoch: Callable[[Epoch], None],
    checkpoint: Checkpoint | None,
) -> dict[str, Tensor]:
    tracker, heads = _perforated(heads, dendrites, tries, seed)
    generator = torch.Generator().manual_seed(seed)
    # perforatedai goes on from the heads with the best score. A rising score keeps the last.
    rising = keep == "last" or objective.tower is not None
    epochs = [Epoch(**row) for row in checkpoint.history()] if checkpoint else []
    restored, number, cycle, finished = len(epochs), 0, 0, False
    best, best_score = {}, -math.inf
    if checkpoint is not None and epochs:
        best, best_score = checkpoint.best(), max(epoch.score for epoch in epochs)
    begun = perf_counter() - (epochs[-1].seconds if epochs else 0.0)
    while not finished:
        optimizer = new_optimizer(heads, objective, schedule)
        tracker.set_optimizer_instance(optimizer)
        for within in range(schedule.length(cycle)):
            number += 1
            if number <= restored:  # told again, so that the heads take the shape they had
                epoch = epochs[number - 1]
                objective.loss(heads, torch.arange(1)).backward()  # gives dendrites their shape
            else:
                if checkpoint is not None and restored and number == restored + 1:
                    checkpoint.restore(heads, objective, optimizer, generator)
                loss = train_epoch(
                    heads, objective, optimizer, schedule, generator, cycle=cycle, epoch=within
                )
                epoch = Epoch(
                    epoch=number,
                    dendrites=tracker.member_vars["num_dendrites_added"],
                    loss=loss,
                    score=dev_score(objective, heads, keep),
                    parameters=count_parameters(heads, objective),
                    seconds=perf_counter() - begun,
                )
                epochs.append(epoch)
                # perforatedai's own best ignores gains below its threshold.
                if improved := epoch.score > best_score or keep == "last":
                    best, best_score = _result(heads, objective), epoch.score
            ends = within + 1 == schedule.length(cycle)
            told = float(number) if rising else epoch.score
            heads, _, finished = tracker.add_validation_score(told, heads, force_switch=ends)
            if checkpoint is not None and number > restored:
                if improved:
                    checkpoint.save_best(best)
                checkpoint.save(epochs, heads, objective, None if ends else optimizer, generator)
            on_epoch(epoch)
            if finished:
                break
        cycle += 1
    return best


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
    tracker.save_graphs = lambda *_: None  # figures that nobody sees, at most of the run time
    return tracker, heads


def _result(heads: Heads, objective: Objective) -> dict[str, Tensor]:
    """Return the heads' and the tower's weights, and outputs to hold a copy against."""
    probe = objective.probe()
    tensors = {**Trained.now(heads, objective).tensors(), "probe": probe.clone()}
    for number, part in enumerate([heads.first, heads.second]):
        if part is not None:
            with torch.no_grad():
                tensors[f"{number}.outputs"] = part.layer(probe).clone()
    return tensors
