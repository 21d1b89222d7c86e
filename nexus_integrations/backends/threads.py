"""How many threads one batch is worth on this machine."""

import os
from pathlib import Path

_SMT = Path("/sys/devices/system/cpu/smt/active")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return the cores that this process may use: by affinity, quota and OMP_NUM_THREADS.

    Two hardware threads of one core share its multipliers: a second one makes products no faster.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = count or 1
    if _read(_SMT) == "1" and count == os.cpu_count():
        count //= 2
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit():  # as PyTorch reads it; Ray sets it for its workers
        count = min(count, int(wanted))
    quota, _, period = _read(_QUOTA).partition(" ")
    if quota.isdigit() and period.isdigit():
        count = min(count, -(-int(quota) // int(period)))
    return max(count, 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
