"""Runtime folders: a graph and a tokenizer, which run without PyTorch."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nexus_integrations.backends import RUNTIME_MANIFEST
from nexus_integrations.backends.process import folder_version
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.files import read_json, sha256_of, write_json

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
TOKENIZER = "tokenizer.json"
PROBE = "probe.safetensors"
"""Ids and their vectors in int8, which show whether a machine computes them as they were made."""

_FORMAT = "nexus-runtime"
_VERSION = 2
RECIPE = 12
"""The number of the graphs' recipe: with another one, cached ones are made anew."""


@dataclass(frozen=True, kw_only=True)
class RuntimeModel:
    """What a runtime folder says beside its graph.

    `digest` is computed from the bytes of the folder's files. `made_from` is the digest of the
    model that it was exported from: the folder's own word, since no one can tell from a graph which
    model it came from. It counts for graphs that this package exported into its own cache, and for
    no other folder.
    """

    precision: Literal["float32", "int8"]
    dimension: int
    tokenizer: TextTokenizer
    made_from: str
    digest: str = ""
    version: tuple[object, ...] = ()
    """The state of the folder's files when they were read; see `folder_version`."""


def write_runtime(folder: Path, model: RuntimeModel) -> None:
    """Complete a folder that holds a graph: the tokenizer, and the manifest with all hashes."""
    (folder / TOKENIZER).write_text(model.tokenizer.definition, encoding="utf-8")
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "precision": model.precision,
        "dimension": model.dimension,
        "made_from": model.made_from,
        "tokenizer": model.tokenizer.settings(),
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    write_json(folder / RUNTIME_MANIFEST, manifest)


def read_runtime(folder: Path) -> RuntimeModel:
    """Read a runtime folder, compare every file with its hash, and compute its digest.

    Raises `ValueError` for one that is incomplete, damaged or altered, that holds a file without a
    hash, or that has another version.
    """
    path = folder / RUNTIME_MANIFEST
    state = folder_version(folder)
    try:
        manifest = read_json(path)
        version = manifest["version"] if manifest["format"] == _FORMAT else None
        if version != _VERSION:
            raise ValueError(
                f"{folder} has format version {version}, this package reads {_VERSION}: "
                "update it, or export the model again"
            )
        hashes = dict(manifest["sha256"])
        needed = {GRAPH, TOKENIZER} | ({PROBE} if manifest["precision"] == "int8" else set())
        found = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
        if missing := (needed - set(hashes)) | (set(hashes) - found):
            raise ValueError(f"{folder} is incomplete: {', '.join(sorted(missing))} is missing")
        verify_files(folder, hashes, found - {RUNTIME_MANIFEST})
        return RuntimeModel(
            precision=manifest["precision"],
            dimension=manifest["dimension"],
            made_from=manifest["made_from"],
            digest=_digest(manifest),
            version=state,
            tokenizer=TextTokenizer(
                definition=(folder / TOKENIZER).read_text(encoding="utf-8"),
                **manifest["tokenizer"],
            ),
        )
    except (UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}") from None


def verify_files(folder: Path, hashes: Mapping[str, str], found: Set[str]) -> None:
    """Compare the files of a folder with their hashes, by their names below it.

    Raises `ValueError` for a file that is missing or differs, and for one in `found` without a
    hash.
    """
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing")
        if sha256_of(folder / name) != expected:
            raise ValueError(f"{folder} was altered: the SHA-256 of {name} differs")
    if strange := found - set(hashes):
        raise ValueError(
            f"{folder} was altered: its manifest has no hash of {', '.join(sorted(strange))}"
        )


def copy_runtime(source: Path, target: Path) -> None:
    """Copy the files that a runtime folder's manifest lists into a new folder or an empty one."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*read_json(source / RUNTIME_MANIFEST)["sha256"], RUNTIME_MANIFEST):
        shutil.copyfile(source / name, target / name)


def precise_digest(float32_digest: str, precision: str) -> str:
    """Return a model's digest in a precision: in float32 every backend gives the same vectors."""
    if precision == "float32":
        return float32_digest
    return hashlib.sha256(f"{float32_digest} {precision} {RECIPE}".encode()).hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a vector depends on, once its files' hashes are verified."""
    told = {name: manifest[name] for name in ("precision", "dimension", "tokenizer", "sha256")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
