"""What a process shares: each loaded model once, under one lock that a fork replaces."""

import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

_T = TypeVar("_T")

_shared: "WeakValueDictionary[Hashable, Any]" = WeakValueDictionary()
_begins: list[Callable[[], None]] = []


class _Process:
    """A fork gets a lock of its own: another thread of its parent may hold the old one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_process = _Process()


def shared(key: Hashable, make: Callable[[], _T]) -> _T:
    """Return the process's one object of this key, made by `make` when there is none.

    It lives as long as somebody holds it. One object is made at a time; `make` may itself call
    `shared`.
    """
    with _process.lock:
        found: _T | None = _shared.get(key)
        if found is None:
            found = _shared[key] = make()
        return found


def on_fork(begin: Callable[[], None]) -> None:
    """Call `begin` at the start of every forked child: it replaces locks and threads."""
    _begins.append(begin)


def folder_version(folder: Path) -> tuple[object, ...]:
    """Return what tells one state of a folder's files from another without reading them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return (
        str(folder.resolve()),
        *((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stamps),
    )


def _begin_process() -> None:
    _process.__init__()  # type: ignore[misc]
    for begin in _begins:
        begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_process)
