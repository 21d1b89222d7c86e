"""Files that appear whole or not at all, and what tells two of them apart."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def written_whole(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give a draft of `path`: synced and renamed in the end, removed when something fails.

    It lies in `folder`, which is of the same file system, by default beside `path`; there it stays
    when the process is killed.
    """
    draft = (folder or path.parent) / f".{path.name}-{uuid4().hex}"
    try:
        draft.touch(exist_ok=False)
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":  # the new name too survives a power cut; Windows needs no call for it
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold, whole or not at all."""
    with written_whole(path) as draft:
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
