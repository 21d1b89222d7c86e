"""How many threads one batch is worth on this machine, and whose turn they are."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


class Turns:
    """A number of threads that several callers compute with, all of them or one at a time.

    No more than that compute at a time, whoever calls. A caller that waits for all threads comes
    before later callers.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._free = threading.Semaphore(threads)
        self._queue = threading.Lock()

    @contextmanager
    def all(self) -> Iterator[None]:
        """Take all threads."""
        held = 0
        try:
            with self._queue:
                while held < self.threads:
                    self._free.acquire()
                    held += 1
            yield
        finally:
            if held:
                self._free.release(held)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take one thread, beside others."""
        with self._queue:
            self._free.acquire()
        try:
            yield
        finally:
            self._free.release()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
