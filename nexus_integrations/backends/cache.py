"""The user's cache of graphs that this machine exported, and of what it measured."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

from filelock import FileLock

from nexus_integrations.backends.folder import RECIPE, RuntimeModel, read_runtime
from nexus_integrations.files import folder_written_whole, read_json, sha256_of, write_json

# What a failed export depends on beside the model.
_EXPORTERS = ("torch", "transformers", "sentence-transformers", "onnx", "onnxscript", "onnxruntime")
_MODEL_FILES = (".json", ".txt", ".model", ".safetensors")


def cached_runtime(
    source: Path, precision: Literal["float32", "int8"], make: Callable[[Path], None]
) -> tuple[Path, RuntimeModel, bool]:
    """Return the runtime folder that was made from a model's folder, making it where there is none.

    It lies in `cache_folder` under the hash of the model's files; a damaged one is made anew.
    `make` writes it into an empty folder, and raises what the caller gets; its `ValueError` is
    raised at once from then on, until a library that it takes has another version. Where the cache
    cannot be written the folder is a temporary one: the third value tells the caller to remove it
    at the end. Raises `PermissionError` for a cache that belongs to another user.
    """
    name = f"{source_digest(source)[:40]}-{precision}-{RECIPE}"
    cache = cache_folder()
    place, failure = cache / name, cache / f"{name}.failed.json"
    check_owner(cache, place)
    if (model := _readable(place)) is not None:
        return place, model, False
    _raise_again(failure)
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(cache / ".lock")
        lock.acquire()
    except OSError:
        draft = Path(tempfile.mkdtemp(prefix="nexus-onnx-"))
        try:
            make(draft)
            return draft, read_runtime(draft), True
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    try:
        if (model := _readable(place)) is None:  # no other process made it meanwhile
            for left in cache.glob(f".{name}-*"):  # by an export that was killed
                shutil.rmtree(left, ignore_errors=True)
            with folder_written_whole(place, private=True) as draft:
                make(draft)
            model = read_runtime(place)
        return place, model, False
    except ValueError as error:
        write_json(failure, {"versions": _versions(), "error": str(error)})
        raise
    finally:
        lock.release()


def cache_folder() -> Path:
    """Return the cache, below `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nexus-integrations" / "onnx"


def check_owner(*folders: Path) -> None:
    """Refuse what another user could have put into a cache; make our own private.

    Raises `PermissionError` where a folder belongs to another user.
    """
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError):
            state = folder.lstat()
            if hasattr(os, "getuid") and state.st_uid != os.getuid():
                raise PermissionError(
                    f"{folder} belongs to another user, who could have changed the models in it: "
                    "set XDG_CACHE_HOME to a folder of your own"
                )
            if state.st_mode & 0o022:
                folder.chmod(0o700)


def source_digest(folder: Path) -> str:
    """Return the SHA-256, in hex, over the names and bytes of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_FILES and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _readable(folder: Path) -> RuntimeModel | None:
    try:
        return read_runtime(folder)
    except (ValueError, OSError):  # damaged, or not there: made anew
        return None


def _raise_again(failure: Path) -> None:
    told = {}
    with suppress(OSError, ValueError):
        told = read_json(failure)
    if isinstance(told, dict) and told.get("versions") == _versions():
        raise ValueError(str(told.get("error")))


def _versions() -> dict[str, str]:
    found = {}
    for package in _EXPORTERS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
