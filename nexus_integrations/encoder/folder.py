"""The folder of a saved or exported encoder: a backbone, heads, and a manifest of hashes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nexus_integrations.backends import RUNTIME_MANIFEST, Backbone, Role, is_runtime_folder
from nexus_integrations.backends.folder import read_runtime, verify_files
from nexus_integrations.encoder.head import DendriticHead, digest_with_heads
from nexus_integrations.encoder.source import find_model
from nexus_integrations.files import folder_written_whole, read_json, sha256_of, write_json

_MANIFEST = "nexus.json"
_BACKBONE = "backbone"
_FORMAT = "nexus-encoder"
_VERSION = 1


def is_encoder_folder(folder: Path) -> bool:
    """Return whether an encoder was saved or exported to a folder."""
    return (folder / _MANIFEST).is_file()


def is_exported(folder: Path) -> bool:
    """Return whether an encoder was exported to a folder, to run without PyTorch."""
    return is_runtime_folder(folder / _BACKBONE)


def is_taken(folder: Path) -> bool:
    """Return whether something lies where a folder is to be written."""
    return folder.exists() and any(folder.iterdir())


def write_encoder(
    target: Path,
    backbone: Backbone,
    heads: Mapping[Role, DendriticHead | None],
    write_backbone: Callable[[Path], None] | None,
    backbone_name: str | None = None,
) -> None:
    """Write an encoder's folder, whole or not at all, over an earlier one.

    `write_backbone` writes the backbone into a new folder; with None the manifest names it by
    `backbone_name` instead.
    """
    with folder_written_whole(target) as draft:
        digest, named = backbone.float32_digest, {}
        if write_backbone is not None:
            write_backbone(draft / _BACKBONE)
        else:
            named = {"backbone": {"name": backbone_name, "digest": digest}}
        if is_exported(draft):
            digest = read_runtime(draft / _BACKBONE).digest
        files = {}
        for role, head in heads.items():
            if head is not None:
                shared = role == "document" and head is heads["query"]
                files[role] = "query_head.safetensors" if shared else f"{role}_head.safetensors"
                head.save(draft / files[role])
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "fingerprint": digest_with_heads(digest, heads["query"], heads["document"]),
            "dimension": backbone.dimension,
            "max_length": backbone.max_length,
            "normalised": True,
            "similarity": "cosine",
            "heads": files,
            **named,
            "sha256": {name: sha256_of(draft / name) for name in sorted(_hashed(draft))},
        }
        write_json(draft / _MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read an encoder's manifest and compare every file's hash with it.

    Raises `ValueError` for a folder that is damaged, incomplete or altered, or whose backbone has a
    file without a hash. A file beside the manifest, as a model card, may have none.
    """
    try:
        manifest = read_json(folder / _MANIFEST)
        version = manifest["version"] if manifest["format"] == _FORMAT else None
        hashes, _ = dict(manifest["sha256"]), manifest["fingerprint"]
        heads = set(manifest["heads"].values())
        if "backbone" in manifest:
            _, _ = manifest["backbone"]["name"], manifest["backbone"]["digest"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _MANIFEST} is damaged: {type(error).__name__}") from None
    if version != _VERSION:
        raise ValueError(
            f"{folder} has format version {version}, this package reads {_VERSION}: update it"
        )
    if not heads <= set(hashes):
        raise ValueError(f"{folder / _MANIFEST} names heads that it has no hash of")
    backbone = {name for name in _hashed(folder) if name.startswith(f"{_BACKBONE}/")}
    verify_files(folder, hashes, backbone)
    return manifest  # type: ignore[no-any-return]


def read_heads(folder: Path, manifest: Mapping[str, Any]) -> dict[str, DendriticHead]:
    """Read an encoder's heads, by role; one head of both roles is one object."""
    by_role = dict(manifest["heads"])
    heads = {name: DendriticHead.load(folder / name) for name in set(by_role.values())}
    return {role: heads[name] for role, name in by_role.items()}


def read_backbone(
    folder: Path, manifest: Mapping[str, Any], read: Callable[[Path], Backbone]
) -> Backbone:
    """Read an encoder's backbone, or find the one that its manifest names.

    Raises `ValueError` where that is another one than the heads were trained on.
    """
    named = manifest.get("backbone")
    if named is None:
        return read(folder / _BACKBONE)
    backbone = read(find_model(named["name"]))
    if backbone.float32_digest != named["digest"]:
        raise ValueError(
            f"the heads in {folder} were trained on another {named['name']} than the one found "
            "here (its digest differs): their vectors would mean nothing"
        )
    return backbone


def _hashed(folder: Path) -> set[str]:
    """Return the names of the files that this manifest has hashes of.

    The files of a runtime folder have theirs in its own manifest, which is compared on loading.
    """
    runtime = folder / _BACKBONE if is_exported(folder) else None
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and (path.parent != runtime or path.name == RUNTIME_MANIFEST)
    }
