"""Growing dendrites with perforatedai, in a child process of its own.

perforatedai keeps its state in module globals, prints, draws, writes files into the working
directory, and can ask questions, start a debugger or end the process. So it runs in a child with a
temporary working directory and no standard input. The child gets arrays and numbers, sends events
back as JSON lines, and leaves plain tensors; nothing of it reaches the caller's process. No other
file imports perforatedai.
"""

import contextlib
import json
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
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

from nexus_integrations.dendrite import DendriticHead
from nexus_integrations.training.fit import Epoch, Keep, Schedule, cycle
from nexus_integrations.training.heads import Heads, Side, exported
from nexus_integrations.training.objectives import (
    RetrievalObjective,
    SimilarityObjective,
    to_numbers,
    to_tensors,
)

_OBJECTIVES: dict[str, type[RetrievalObjective] | type[SimilarityObjective]] = {
    kind.kind: kind for kind in (RetrievalObjective, SimilarityObjective)
}
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
    objective: RetrievalObjective | SimilarityObjective,
    side: Side,
    schedule: Schedule,
    *,
    dendrites: int,
    tries: int,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    keep: Keep = "best",
) -> list[DendriticHead]:
    """Train heads, adding up to `dendrites` one at a time while the dev score rises.

    With `keep` "last" every cycle runs to its end and exactly `dendrites` are added, whatever the
    dev score. Returns one head, or two under side "each" (query, document). Raises `ImportError`
    when perforatedai cannot be imported and `RuntimeError` when the child ends early or its head
    cannot be copied exactly.
    """
    require_perforatedai()
    with tempfile.TemporaryDirectory(prefix="nexus-dendrites-") as name:
        folder = Path(name)
        save_file(to_tensors(objective), str(folder / "job.safetensors"))
        job = {
            "kind": objective.kind,
            "numbers": to_numbers(objective),
            "side": side,
            "schedule": asdict(schedule),
            "dendrites": dendrites,
            "tries": tries,
            "seed": seed,
            "keep": keep,
            "threads": torch.get_num_threads(),
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


def _collect(folder: Path) -> list[DendriticHead]:
    """Build the heads from the child's tensors and hold them against the child's own outputs."""
    arrays = safetensors.numpy.load_file(folder / "result.safetensors")
    heads = []
    for number in range(1 + ("1.weight" in arrays)):
        head = DendriticHead(
            weight=arrays[f"{number}.weight"],
            dendrite_weight=arrays[f"{number}.dendrite_weight"],
            between=arrays[f"{number}.between"],
            top=arrays[f"{number}.top"],
        )
        outputs = head.residual(arrays["probe"])
        error = float(np.abs(outputs - arrays[f"{number}.outputs"]).max())
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the copied head differs from the grown one by {error:.1e} (at most "
                f"{_TOLERANCE:.0e} is rounding): this perforatedai computes something else"
            )
        heads.append(head)
    return heads


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
        parts: dict[str, Any] = {**load_file("job.safetensors"), **job["numbers"]}
        objective = _OBJECTIVES[job["kind"]](**parts)
        heads = _grow_in_child(
            objective,
            Heads(objective.dimension, job["side"]),
            Schedule(**job["schedule"]),
            dendrites=job["dendrites"],
            tries=job["tries"],
            seed=job["seed"],
            keep=job["keep"],
            on_epoch=lambda epoch: emit("epoch", epoch=asdict(epoch)),
        )
        _write_result(heads, objective)
    except BaseException as error:
        emit("error", message=f"{type(error).__name__}: {error}")
    else:
        emit("done")


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
    objective: RetrievalObjective | SimilarityObjective,
    heads: Heads,
    schedule: Schedule,
    *,
    dendrites: int,
    tries: int,
    seed: int,
    keep: Keep,
    on_epoch: Callable[[Epoch], None],
) -> Heads:
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
    generator = torch.Generator().manual_seed(seed)
    heads = UPA.perforate_model(heads, save_name="growth", maximizing_score=True)
    tracker = GPA.pai_tracker
    tracker.save_graphs = lambda *_: None  # figures that nobody sees, at most of the run time
    begun, number, done = perf_counter(), 0, False
    while not done:
        steps = cycle(heads, objective, schedule, generator, tracker.set_optimizer_instance)
        for within, (loss, score) in enumerate(steps, start=1):
            number += 1
            on_epoch(
                Epoch(
                    epoch=number,
                    dendrites=tracker.member_vars["num_dendrites_added"],
                    loss=loss,
                    score=score,
                    parameters=sum(p.numel() for p in heads.parameters() if p.requires_grad),
                    seconds=perf_counter() - begun,
                )
            )
            # perforatedai keeps the weights with the best score: a rising one keeps the last.
            told = score if keep == "best" else float(number)
            heads, _, done = tracker.add_validation_score(
                told, heads, force_switch=within == schedule.epochs
            )
            if done:
                break
    return heads


def _write_result(heads: Heads, objective: RetrievalObjective | SimilarityObjective) -> None:
    vectors = objective.queries if isinstance(objective, RetrievalObjective) else objective.first
    probe = vectors[:64]
    arrays = {"probe": probe.numpy()}
    for number, part in enumerate([heads.first, heads.second]):
        if part is not None:
            with torch.no_grad():
                arrays[f"{number}.outputs"] = part.layer(probe).numpy()
            for name, array in exported(part.layer).arrays.items():
                arrays[f"{number}.{name}"] = array
    safetensors.numpy.save_file(arrays, "result.safetensors")
