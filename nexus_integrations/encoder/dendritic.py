"""Text to unit vectors: a backbone with a head per role."""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nexus_integrations.backends import (
    RUNTIME_MANIFEST,
    Backbone,
    Backend,
    Precision,
    Role,
    is_runtime_folder,
    load_backbone,
)
from nexus_integrations.data import check_texts
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.encoder.source import DEFAULT_MODEL, find_model
from nexus_integrations.files import sha256_of
from nexus_integrations.protocols import Floats

_MANIFEST = "nexus.json"
_BACKBONE = "backbone"
_FORMAT = "nexus-encoder"
_VERSION = 1


class Encoded(NamedTuple):
    """What texts became.

    `vectors` are float32 (n, dimension), one unit row per text. `truncated` texts were longer than
    the model reads and cut off; `blank` texts hold no character but blanks.
    """

    vectors: Floats
    truncated: int
    blank: int


class DendriticEncoder:
    """A frozen backbone and, for each role, an optional head on its vectors.

    An encoder is immutable: training returns another one, which shares the backbone. A head on the
    query side alone leaves stored document vectors valid; one on both sides does not.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        query_head: DendriticHead | None = None,
        document_head: DendriticHead | None = None,
    ) -> None:
        """Join a backbone and heads; `load` makes one from a model's name.

        The same head given twice is one shared head. Raises `ValueError` for a head of another
        dimension than the backbone's.
        """
        for head in (query_head, document_head):
            if head is not None and head.dimension != backbone.dimension:
                raise ValueError(
                    f"a head of dimension {head.dimension} does not fit a backbone of dimension "
                    f"{backbone.dimension}"
                )
        self.backbone = backbone
        self.query_head = query_head
        self.document_head = document_head

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "cpu",
        backend: Backend = "auto",
        precision: Precision | None = None,
        num_threads: int | None = None,
    ) -> "DendriticEncoder":
        """Load a saved or exported encoder, or a plain sentence-transformers model without heads.

        `model` is a folder or a hub name, by default all-MiniLM-L6-v2; see `source.find_model` for
        where it is looked for. How it runs changes its vectors by `precision` alone: by default
        float32, or what an exported folder was exported in. `num_threads` is how many threads
        compute, by default one per core.

        Raises `FileNotFoundError` when the model is nowhere, `ValueError` when a folder is damaged,
        was tampered with, holds no model, or does not run in this way, and `ImportError` when a
        library that it takes is missing.
        """
        read = partial(
            load_backbone,
            backend=backend,
            precision=precision,
            device=device,
            num_threads=num_threads,
        )
        folder = find_model(str(model if model is not None else DEFAULT_MODEL))
        if not (folder / _MANIFEST).is_file():
            return cls(read(folder))
        manifest = _verified_manifest(folder)
        named = manifest.get("backbone")
        heads = {
            name: DendriticHead.load(folder / name) for name in set(manifest["heads"].values())
        }
        by_role = {role: heads[name] for role, name in manifest["heads"].items()}
        encoder = cls(
            read(folder / _BACKBONE) if named is None else _named_backbone(folder, named, read),
            query_head=by_role.get("query"),
            document_head=by_role.get("document"),
        )
        if encoder._float32_fingerprint != manifest["fingerprint"]:
            raise ValueError(
                f"{folder} does not give the vectors it was saved with: its fingerprint differs. "
                "It was altered, or a library reads the model differently"
            )
        return encoder

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self.backbone.dimension

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read; the rest is cut off."""
        return self.backbone.max_length

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over all that a vector depends on beside its text.

        That is the backbone's weights, pooling, prompts, maximal length and precision, and both
        heads. The backend has no part in it: in float32 all give the same vectors.
        """
        return _digest(self.backbone.digest, self.query_head, self.document_head)

    @property
    def document_fingerprint(self) -> str:
        """SHA-256, in hex, over all that a document's vector depends on.

        Encoders that differ in their query head alone share it: they can share stored vectors.
        """
        return _digest(self.backbone.digest, self.document_head)

    @property
    def _float32_fingerprint(self) -> str:
        """What tells a saved encoder from others, in whatever precision it runs."""
        return _digest(self.backbone.float32_digest, self.query_head, self.document_head)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per query: float32 (n, dimension); as `encode` otherwise."""
        return self._encode(texts, "query").vectors

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per document: float32 (n, dimension); as `encode` otherwise."""
        return self._encode(texts, "document").vectors

    def encode(self, texts: Sequence[str], role: Role) -> Encoded:
        """Return one unit row per text of a role, and how many texts were cut off or are blank.

        Raises `TypeError` for a bare string and for an item that is not text. Blank texts, lone
        surrogates (read as U+FFFD) and texts longer than `max_length` are embedded, with a warning
        of each kind.
        """
        return self._encode(texts, role)

    def backbone_vectors(self, texts: Sequence[str], role: Role) -> Floats:
        """Return the backbone's unit vectors, float32 (n, dimension), before any head."""
        return self._encode(texts, role, heads=False).vectors

    def _encode(self, texts: Sequence[str], role: Role, heads: bool = True) -> Encoded:
        if not isinstance(texts, (str, bytes)):
            texts = list(texts)  # a generator can be read once
        check_texts(texts)
        readable = [_readable(text) for text in texts]
        blank = sum(not text.strip() for text in readable)
        vectors, truncated = self.backbone.encode(readable, role)
        # Messages without numbers: Python shows each of them once for a place in the code.
        if readable != texts:
            _warn("hold lone surrogates, which are read as U+FFFD")
        if blank:
            _warn("are blank: their vectors mean nothing")
        if truncated:
            _warn(
                f"are longer than {self.max_length} tokens and were cut off; `encode` counts them"
            )
        head = self.query_head if role == "query" else self.document_head
        if heads and head is not None:
            vectors = head.transform(vectors)
        return Encoded(vectors, truncated, blank)

    def with_heads(
        self, *, query_head: DendriticHead | None, document_head: DendriticHead | None
    ) -> "DendriticEncoder":
        """Return an encoder with these heads over the same backbone."""
        return DendriticEncoder(self.backbone, query_head=query_head, document_head=document_head)

    def save(self, folder: str | Path, *, backbone_name: str | None = None) -> None:
        """Write backbone, heads and a manifest of hashes: safetensors and JSON, no training text.

        With `backbone_name`, the name of this encoder's backbone on the hub, the heads alone are
        written: `load` then looks for the backbone by that name (see `source.find_model`) and
        compares its digest.

        The folder appears whole or not at all; one that an encoder was saved to is replaced. The
        backbone is written in float32, whatever it runs in; that of an exported folder is copied.
        Raises `FileExistsError` for a folder that holds something else, and `OSError` when it
        cannot be written.
        """
        target = Path(folder)
        if target.exists() and any(target.iterdir()) and not (target / _MANIFEST).is_file():
            raise FileExistsError(f"{target} holds something other than a saved encoder")
        self._write(target, None if backbone_name else self.backbone.save, backbone_name)

    def export(self, folder: str | Path, precision: Precision | None = None) -> None:
        """Write a folder that `load` reads without PyTorch: the backbone as ONNX, and the heads.

        `precision` is "float32", "int8" or "auto", by default the encoder's own. The folder appears
        whole or not at all; one that an encoder was exported to is replaced. Raises
        `FileExistsError` for a folder that holds something else, a saved encoder too, whose weights
        it would replace; else what `export_backbone` raises.
        """
        target = Path(folder)
        if target.exists() and any(target.iterdir()) and not is_runtime_folder(target / _BACKBONE):
            raise FileExistsError(f"{target} holds something other than an exported encoder")
        from nexus_integrations.backends.export import export_backbone

        self._write(target, partial(export_backbone, self.backbone, precision=precision))

    def _write(
        self,
        target: Path,
        write_backbone: Callable[[Path], None] | None,
        backbone_name: str | None = None,
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            named = {}
            if write_backbone is not None:
                write_backbone(draft / _BACKBONE)
            else:
                named = {
                    "backbone": {"name": backbone_name, "digest": self.backbone.float32_digest}
                }
            heads = {}
            for role, head in (("query", self.query_head), ("document", self.document_head)):
                if head is not None:
                    shared = role == "document" and head is self.query_head
                    heads[role] = "query_head.safetensors" if shared else f"{role}_head.safetensors"
                    head.save(draft / heads[role])
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            if is_runtime_folder(draft / _BACKBONE):
                # Its manifest has the hashes of its files, and they are compared on loading.
                own = {draft / _BACKBONE / RUNTIME_MANIFEST}
                files = [path for path in files if path.parent != draft / _BACKBONE or path in own]
            manifest = {
                "format": _FORMAT,
                "version": _VERSION,
                "fingerprint": self._float32_fingerprint,
                "dimension": self.dimension,
                "max_length": self.max_length,
                "normalised": True,
                "similarity": "cosine",
                "heads": heads,
                **named,
                "sha256": {path.relative_to(draft).as_posix(): sha256_of(path) for path in files},
            }
            (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            # Temporary folders, and some writers, are private; the manifest is as new files are.
            mode = (draft / _MANIFEST).stat().st_mode & 0o777
            for path in (draft, *draft.rglob("*")):
                path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                target.rename(old / "old")
                draft.rename(target)
                shutil.rmtree(old)
            else:
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def save_sentence_transformers(self, folder: str | Path) -> None:
        """Write a plain sentence-transformers folder, which any of its users loads.

        Possible when both roles share one linear head, or have none: it becomes one `Dense` layer.
        Raises `ValueError` for other heads, dendrites being no `Dense`, and for an encoder that was
        exported; `ImportError` without PyTorch.
        """
        head = self.query_head
        if head is not self.document_head or (head is not None and head.dendrites):
            raise ValueError(
                "only one linear head, shared by both roles, is a plain sentence-transformers "
                "model: train with heads='shared', dendrites=0, or use save"
            )
        backbone = self.backbone
        runs = (backbone.backend, backbone.precision)
        if runs != ("torch", "float32") and backbone.folder is not None:
            backbone = load_backbone(backbone.folder, backend="torch", precision="float32")
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize

        from nexus_integrations.backends.torch import TorchBackbone

        if not isinstance(backbone, TorchBackbone):
            raise ValueError(f"a {type(backbone).__name__} is no sentence-transformers model")
        modules = list(backbone.model)
        if head is not None:
            dense = Dense(self.dimension, self.dimension, bias=False, activation_function=None)
            weight = np.eye(self.dimension, dtype=np.float32) + head.weight
            dense.load_state_dict({"linear.weight": torch.from_numpy(weight)})
            modules += [dense, Normalize()]  # (I + W)v needs no unit v: its length cancels
        prompts = {name: text or "" for name, text in backbone.model.prompts.items()}
        plain = SentenceTransformer(modules=modules, prompts=prompts)
        TorchBackbone(plain).save(Path(folder))


def _warn(what: str) -> None:
    warnings.warn(f"some of the texts {what}", UserWarning, stacklevel=4)


def _digest(backbone: str, *heads: DendriticHead | None) -> str:
    digest = hashlib.sha256(backbone.encode())
    for head in heads:
        # An untrained head changes no vector, so it does not change the fingerprint.
        arrays = {} if head is None or head.is_identity else head.arrays
        digest.update(f"head {len(arrays)}".encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _readable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes (PDF extraction leaves them)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _named_backbone(
    folder: Path, named: dict[str, str], read: Callable[[Path], Backbone]
) -> Backbone:
    """Find the backbone that a folder of heads names, and make sure that it is the one."""
    backbone = read(find_model(named["name"]))
    if backbone.float32_digest != named["digest"]:
        raise ValueError(
            f"the heads in {folder} were trained on another {named['name']} than the one found "
            "here (its digest differs): their vectors would mean nothing"
        )
    return backbone


def _verified_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and compare every file's hash with it."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"] if manifest["format"] == _FORMAT else None
        hashes, _ = manifest["sha256"], manifest["fingerprint"]
        heads = set(manifest["heads"].values())
        if "backbone" in manifest:
            _, _ = manifest["backbone"]["name"], manifest["backbone"]["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _MANIFEST} is damaged: {error!r}") from None
    if version != _VERSION:
        raise ValueError(
            f"{folder} has format version {version}, this package reads {_VERSION}: update it"
        )
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} is incomplete: {name} is missing")
        if sha256_of(path) != expected:
            raise ValueError(f"{folder} was altered: the SHA-256 of {name} differs")
    if not heads <= set(hashes):
        raise ValueError(f"{folder / _MANIFEST} names heads that it has no hash of")
    return manifest  # type: ignore[no-any-return]
