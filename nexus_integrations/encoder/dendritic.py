"""Text to unit vectors: a backbone with a head per role."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from nexus_integrations.backends import Backbone, Backend, Precision, Role, load_backbone
from nexus_integrations.data import check_texts
from nexus_integrations.encoder.folder import (
    is_encoder_folder,
    is_exported,
    is_taken,
    read_backbone,
    read_heads,
    read_manifest,
    write_encoder,
)
from nexus_integrations.encoder.head import DendriticHead, digest_with_heads
from nexus_integrations.encoder.source import DEFAULT_MODEL, find_model
from nexus_integrations.protocols import Floats


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
        if not is_encoder_folder(folder):
            return cls(read(folder))
        manifest = read_manifest(folder)
        by_role = read_heads(folder, manifest)
        encoder = cls(
            read_backbone(folder, manifest, read),
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
        return digest_with_heads(self.backbone.digest, self.query_head, self.document_head)

    @property
    def document_fingerprint(self) -> str:
        """SHA-256, in hex, over all that a document's vector depends on.

        Encoders that differ in their query head alone share it: they can share stored vectors.
        """
        return digest_with_heads(self.backbone.digest, self.document_head)

    @property
    def _float32_fingerprint(self) -> str:
        """What tells a saved encoder from others, in whatever precision it runs."""
        return digest_with_heads(self.backbone.float32_digest, self.query_head, self.document_head)

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
        head = self._heads[role]
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
        if is_taken(target) and not is_encoder_folder(target):
            raise FileExistsError(f"{target} holds something other than a saved encoder")
        write = None if backbone_name else self.backbone.save
        write_encoder(target, self.backbone, self._heads, write, backbone_name)

    def export(self, folder: str | Path, precision: Precision | None = None) -> None:
        """Write a folder that `load` reads without PyTorch: the backbone as ONNX, and the heads.

        `precision` is "float32", "int8" or "auto", by default the encoder's own. The folder appears
        whole or not at all; one that an encoder was exported to is replaced. Raises
        `FileExistsError` for a folder that holds something else, a saved encoder too, whose weights
        it would replace; else what `export_backbone` raises.
        """
        target = Path(folder)
        if is_taken(target) and not is_exported(target):
            raise FileExistsError(f"{target} holds something other than an exported encoder")
        from nexus_integrations.backends.export import export_backbone

        write = partial(export_backbone, self.backbone, precision=precision)
        write_encoder(target, self.backbone, self._heads, write)

    def save_sentence_transformers(self, folder: str | Path) -> None:
        """Write a plain sentence-transformers folder, which any of its users loads.

        Possible when both roles share one linear head, or have none: it becomes one `Dense` layer.
        Raises `ValueError` for other heads, dendrites being no `Dense`, and for an encoder that was
        exported; `ImportError` without PyTorch.
        """
        from nexus_integrations.encoder.plain import save_plain

        save_plain(self.backbone, self.query_head, self.document_head, Path(folder))

    @property
    def _heads(self) -> dict[Role, DendriticHead | None]:
        return {"query": self.query_head, "document": self.document_head}


def _warn(what: str) -> None:
    warnings.warn(f"some of the texts {what}", UserWarning, stacklevel=4)


def _readable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes (PDF extraction leaves them)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
