"""Runtime folders, which need no PyTorch, and the cache of those that were made on this machine."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from filelock import FileLock

from nexus_integrations.backends import RUNTIME_MANIFEST
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.files import sha256_of

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"
PROBE = "probe.safetensors"
"""Ids and their vectors in int8, by which a machine is known that computes otherwise."""

_FORMAT = "nexus-runtime"
_VERSION = 1
RECIPE = 10
"""The number of the graphs' recipe: with another one, cached ones are made anew."""

# What a failed export depends on beside the model.
_EXPORTERS = ("torch", "transformers", "sentence-transformers", "onnx", "onnxscript", "onnxruntime")
_MODEL_FILES = (".json", ".txt", ".model", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class RuntimeModel:
    """What a runtime folder tells beside its graph."""

    precision: Literal["float32", "int8"]
    digest: str
    float32_digest: str
    dimension: int
    tokenizer: TextTokenizer


def write_runtime(folder: Path, model: RuntimeModel) -> None:
    """Complete a folder that holds a graph: the tokenizer, and the manifest with all hashes."""
    (folder / TOKENIZER).write_text(model.tokenizer.definition, encoding="utf-8")
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "precision": model.precision,
        "digest": model.digest,
        "float32_digest": model.float32_digest,
        "dimension": model.dimension,
        "tokenizer": model.tokenizer.settings(),
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    (folder / RUNTIME_MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    # Readable by whom new files are: onnx and mkdtemp write for the owner alone.
    mode = (folder / RUNTIME_MANIFEST).stat().st_mode & 0o777
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(mode | (mode & 0o444) >> 2)


def read_runtime(folder: Path) -> RuntimeModel:
    """Read a runtime folder and compare every file with its hash.

    Raises `ValueError` for one that is incomplete, damaged, altered, or of another version.
    """
    path = folder / RUNTIME_MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"] if manifest["format"] == _FORMAT else None
        if version != _VERSION:
            raise ValueError(
                f"{folder} has format version {version}, this package reads {_VERSION}: "
                "update it, or export the model again"
            )
        hashes = dict(manifest["sha256"])
        needed = {GRAPH, TOKENIZER} | ({PROBE} if manifest["precision"] == "int8" else set())
        missing = needed - set(hashes)
        for name, expected in hashes.items():
            if not (folder / name).is_file():
                missing.add(name)
            elif sha256_of(folder / name) != expected:
                raise ValueError(f"{folder} was altered: the SHA-256 of {name} differs")
        if missing:
            raise ValueError(f"{folder} is incomplete: {', '.join(sorted(missing))} is missing")
        return RuntimeModel(
            precision=manifest["precision"],
            digest=manifest["digest"],
            float32_digest=manifest["float32_digest"],
            dimension=manifest["dimension"],
            tokenizer=TextTokenizer(
                definition=(folder / TOKENIZER).read_text(encoding="utf-8"),
                **manifest["tokenizer"],
            ),
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def copy_runtime(source: Path, target: Path) -> None:
    """Copy a runtime folder's files into a new folder or an empty one."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def cached_runtime(
    source: Path, precision: Literal["float32", "int8"], make: Callable[[Path], None]
) -> tuple[Path, RuntimeModel, bool]:
    """Return the runtime folder that was made from a model's folder, making it where there is none.

    It lies under the hash of the model's files in `$XDG_CACHE_HOME/nexus-integrations`, by default
    below `~/.cache`; one that is damaged is made anew. `make` writes it into an empty folder, and
    raises what the caller gets; its `ValueError` is raised at once from then on, until a library
    that it takes has another version. Where the cache cannot be written the folder is a temporary
    one: the third value tells the caller to remove it at the end.
    """
    name = f"{source_digest(source)[:40]}-{precision}-{RECIPE}"
    place = cache_folder() / name
    if (model := _readable(place)) is not None:
        return place, model, False
    failure = place.with_name(f"{name}.failed.json")
    _raise_again(failure)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.parent / ".lock")
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
        if (model := _readable(place)) is not None:  # another process made it meanwhile
            return place, model, False
        for left in place.parent.glob(f".{name}-*"):  # by an export that was killed
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
        try:
            try:
                make(draft)
            except ValueError as error:
                told = {"versions": _versions(), "error": str(error)}
                failure.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
                raise
            model = read_runtime(draft)
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
            return place, model, False
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        lock.release()


def cache_folder() -> Path:
    """Return where graphs that were made on this machine are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "nexus-integrations" / "onnx"


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
    with suppress(OSError, json.JSONDecodeError, KeyError, TypeError):
        told = json.loads(failure.read_text(encoding="utf-8"))
        if told["versions"] == _versions():
            raise ValueError(told["error"])


def _versions() -> dict[str, str]:
    found = {}
    for package in _EXPORTERS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def precise_digest(float32_digest: str, precision: str) -> str:
    """Return a model's digest in a precision: in float32 every backend gives the same vectors."""
    if precision == "float32":
        return float32_digest
    return hashlib.sha256(f"{float32_digest} {precision} {RECIPE}".encode()).hexdigest()
