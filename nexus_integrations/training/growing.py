"""Growing dendrites: the process that asks for them, and the child that it starts.

perforatedai keeps its state in module globals, prints, draws, writes files into the working
directory, and can ask questions, start a debugger or end the process. So it runs in a child of its
own (`perforated.py`) with a temporary working directory and no standard input. The child gets
numbers and tensors through a pipe, and returns epochs and plain tensors through another: no text,
token or vector of the user's is written to disk. The folder holds a backbone that is trained,
perforatedai's own files and what it prints.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from nexus_integrations.training.checkpoint import Checkpoint
from nexus_integrations.training.config import HeadsKind
from nexus_integrations.training.loop import Schedule
from nexus_integrations.training.messages import packed, receive, send
from nexus_integrations.training.objectives import Objective
from nexus_integrations.training.result import Epoch
from nexus_integrations.training.trained import Trained

_INSTALL = (
    'pip install "nexus-integrations[dendrites]" (perforatedai has wheels for CPython 3.10-3.12)'
)
# A copied head must give the child's own outputs to within float32 rounding.
_TOLERANCE = 1e-6

_PREFIX = "nexus-dendrites-"
_LOCK = "parent.lock"
_NEW = 60.0  # seconds in which a folder may not have its lock yet

# All that the child gets of this process's environment: no token, key or password.
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TEMP", "TMP"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "USERPROFILE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
    # Where Python writes compiled modules, if anywhere.
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
)


def require_perforatedai() -> None:
    """Raise `ImportError`, with the command that installs it, when perforatedai is missing."""
    if find_spec("perforatedai") is None:
        raise ImportError(
            f"growing dendrites needs perforatedai: {_INSTALL}, or train with dendrites=0"
        )


def grow(
    objective: Objective,
    kind: HeadsKind,
    schedule: Schedule,
    *,
    dendrites: int,
    tries: int,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    dev_chooses: bool = True,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train heads, adding up to `dendrites` one at a time while the dev score rises.

    Without `dev_chooses` every cycle runs to its end and exactly `dendrites` are added. So they are
    where a backbone is trained as well: each cycle continues from the last epoch, since heads of an
    earlier one would not fit the backbone, and the best epoch of all is returned. `checkpoint` is
    for such runs alone. Raises `ImportError` when perforatedai cannot be imported and
    `RuntimeError` when the child ends early or its head cannot be copied exactly.
    """
    require_perforatedai()
    content, tensors = packed(objective)
    job = {
        **content,
        "dropout": None if objective.tower is None else objective.tower.dropout,
        "heads": kind,
        "schedule": asdict(schedule),
        "growth": {
            "dendrites": dendrites,
            "tries": tries,
            "seed": seed,
            "dev_chooses": dev_chooses,
        },
        "threads": torch.get_num_threads(),
        "checkpoint": checkpoint and [str(checkpoint.folder.resolve()), checkpoint.identity],
    }
    with _own_folder() as folder:
        if objective.tower is not None:
            objective.tower.save(folder / "backbone")
        with _child(folder) as child:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended: `_follow` tells how
                send(child.stdin, job, tensors)
            return _follow(child, folder, on_epoch)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Give a private folder, removed in the end; remove those that killed processes left."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):  # another user's, or one in use
            if time() - left.stat().st_mtime > _NEW:
                with FileLock(left / _LOCK, timeout=0):
                    pass
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, FileLock(Path(name, _LOCK)):
        yield Path(name)


@contextmanager
def _child(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the child in its folder; end it in the end, whatever happened."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    with (folder / "child.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", f"from {__package__}.perforated import run_child; run_child()"],
            cwd=folder,
            # Held open for the child's life: when this process dies, the child reads its end.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={
                **passed_on,
                "PYTHONPATH": _search_path(),
                "MPLBACKEND": "Agg",
                "MPLCONFIGDIR": str(folder),  # its own graphs need a place for fonts
                "HF_HUB_OFFLINE": "1",
                # Threads that spin while they wait make a busy machine many times slower.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            # Ctrl-C is this process's to handle: it ends the child below.
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _follow(
    child: "subprocess.Popen[bytes]", folder: Path, on_epoch: Callable[[Epoch], None]
) -> Trained:
    """Hand on the child's epochs until it is done; return what it trained."""
    assert child.stdout is not None
    while (message := receive(child.stdout)) is not None:
        event, tensors = message
        if event["event"] == "epoch":
            on_epoch(Epoch(**event["epoch"]))
        elif event["event"] == "import-error":
            raise ImportError(f"perforatedai cannot be imported ({event['message']}): {_INSTALL}")
        elif event["event"] == "error":
            raise RuntimeError(f"growing dendrites failed: {event['message']}")
        elif event["event"] == "done":
            return _checked(tensors)
    status = child.wait()
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    log = (folder / "child.log").read_text(errors="replace").strip().splitlines()
    raise RuntimeError(
        f"the process that grows dendrites ended early, {how}"
        + (" (the system may have run out of memory)" if status == -9 else "")
        + (f"; its last words: {log[-1]}" if log else "")
    )


def _checked(tensors: dict[str, Tensor]) -> Trained:
    """Return what was trained, after comparing the heads with the child's own outputs."""
    trained = Trained.of_tensors(tensors)
    for number, head in enumerate(trained.heads):
        outputs: Any = head.residual(tensors["probe"].numpy())
        error = float(np.abs(outputs - tensors[f"{number}.outputs"].numpy()).max())
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the copied head differs from the grown one by {error:.1e} (at most "
                f"{_TOLERANCE:.0e} is rounding): this perforatedai computes something else"
            )
    return trained


def _search_path() -> str:
    """Return this process's search path: the child imports what it imports."""
    return os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
