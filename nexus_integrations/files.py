"""Files that appear whole or not at all, and what tells two of them apart."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4


@contextmanager
def written_whole(
    path: Path, folder: Path | None = None, *, private: bool = False
) -> Iterator[Path]:
    """Give a draft of `path`: synced and renamed in the end, removed when something fails.

    With `private`, for what holds text, vectors or questions, only its owner may read it. The draft
    lies in `folder`, which is of the same file system, by default beside `path`; there it stays
    when the process is killed.
    """
    draft = (folder or path.parent) / f".{path.name}-{uuid4().hex}"
    try:
        draft.touch(mode=0o600 if private else 0o666, exist_ok=False)
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def folder_written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give an empty draft of the folder `path`: synced and renamed in the end, or removed.

    A folder of this name is replaced. Its files are readable as new files are, with `private` by
    their owner alone. The draft lies beside `path`, where it stays when the process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield draft
        mode = 0o600 if private else _mode_of_new_files(draft)
        for inner in (*draft.rglob("*"), draft):
            inner.chmod(mode | (mode & 0o444) >> 2 if inner.is_dir() else mode)
            if inner.is_dir():
                sync_folder(inner)
            else:
                with inner.open("rb") as file:
                    os.fsync(file.fileno())
        if path.exists():
            old = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            path.rename(old / "old")
            draft.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(path.parent)


def _mode_of_new_files(folder: Path) -> int:
    """Return the mode that the process's umask leaves, which can be read in no other safe way."""
    probe = folder / f".{uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def sync_folder(folder: Path) -> None:
    """Let a folder's names survive a power cut; Windows needs no call for it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any, *, private: bool = False) -> None:
    """Write what JSON can hold, whole or not at all; with `private` for its owner alone."""
    with written_whole(path, private=private) as draft:
        draft.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `ValueError`, which names file and place, for anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets in them
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
