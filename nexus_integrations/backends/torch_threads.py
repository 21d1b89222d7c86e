"""PyTorch's threads: their number is the process's, and a fork has none of them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from nexus_integrations.backends.process import on_fork


class _State:
    def __init__(self) -> None:
        self.setting = threading.Lock()
        self.ran = False  # a model, here or in the process that this one was forked from
        self.one_thread = False


_state = _State()


def mark_run() -> None:
    """Note that PyTorch computes in this process: its forks then have one thread."""
    _state.ran = True


def only_one_thread() -> bool:
    """Return whether this process is a fork in which PyTorch's other threads are missing."""
    return _state.one_thread


@contextmanager
def thread_number(number: int | None) -> Iterator[None]:
    """Set the process's number of threads for a while; None, and a fork's one thread, stay.

    One caller sets it at a time, or another one's number would be restored.
    """
    if number is None or _state.one_thread:
        yield
        return
    with _state.setting:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def lone_threads(number: int) -> ThreadPoolExecutor:
    """Return threads that compute by themselves, without OpenMP's team."""
    pool = ThreadPoolExecutor(number, "nexus-model")
    all_there = threading.Barrier(number, timeout=60)  # where the system gives no more threads

    def begin(_: int) -> None:
        torch.get_num_threads()  # a thread keeps the number that is set at its first use
        all_there.wait()

    with thread_number(1):
        list(pool.map(begin, range(number)))
    return pool


def _begin_process() -> None:
    _state.setting = threading.Lock()
    if _state.ran:  # OpenMP would wait for its old threads for ever
        _state.one_thread = True
        torch.set_num_threads(1)


on_fork(_begin_process)
