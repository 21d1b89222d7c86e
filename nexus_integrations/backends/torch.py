"""A sentence-transformers model run by PyTorch."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

from nexus_integrations.backends import Precision, Role
from nexus_integrations.progress import progress_bar
from nexus_integrations.types import Floats

# Texts sorted by length are embedded in batches of about this many characters (some 2,000 word
# pieces), so that long texts do not fill the memory and short ones fill the cores.
_BATCH_CHARACTERS = 16_384
_BATCH_TEXTS = 64

_loaded: "WeakValueDictionary[tuple[str, str, int, int], TorchBackbone]" = WeakValueDictionary()
_loading = threading.Lock()


class TorchBackbone:
    """A frozen sentence-transformers model: text to unit vectors, by role.

    One instance per folder and device serves the whole process. Calls are serialised: tokenizers
    and two cores gain nothing from threads side by side.
    """

    backend: Literal["torch"] = "torch"
    precision: Literal["float32", "bfloat16", "int8"] = "float32"

    def __init__(self, model: SentenceTransformer, folder: Path | None = None) -> None:
        self.model = model.eval()
        self.folder = folder
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "TorchBackbone":
        """Return the process's one backbone of this folder, loading it when it is new.

        Raises `ValueError` for a folder that holds no readable model. Weights are read from
        safetensors alone, and code in the folder is never run.
        """
        # Files that changed in place are another model.
        stamps = [f.stat() for f in folder.rglob("*") if f.is_file()]
        key = (
            str(folder.resolve()),
            device,
            sum(stamp.st_size for stamp in stamps),
            max((stamp.st_mtime_ns for stamp in stamps), default=0),
        )
        with _loading:
            backbone = _loaded.get(key)
            if backbone is None:
                new = cls(_read(folder, device), folder)
                # A copy in another folder, as a saved encoder has one, is the same backbone.
                same = (b for k, b in _loaded.items() if k[1] == device and b.digest == new.digest)
                backbone = _loaded[key] = next(same, new)
            return backbone

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", "mps"."""
        return str(self.model.device)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def max_length(self) -> int:
        """How many word pieces of a text are read; the rest is cut off."""
        return int(self.model.max_seq_length or 0)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over weights, vocabulary, modules, prompts and maximal length."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        settings = {
            "modules": [
                [type(module).__name__, getattr(module, "get_config_dict", dict)()]
                for module in self.model
            ],
            "prompts": dict(self.model.prompts),
            "max_length": self.max_length,
            "tokenizer": _tokenizer_settings(self.model.tokenizer),
        }
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    @property
    def float32_digest(self) -> str:
        """The `digest` that this model has in float32."""
        return self.digest

    def count_truncated(self, texts: Sequence[str]) -> int:
        """Return how many texts are longer than `max_length` word pieces."""
        # A character makes few word pieces (a Hangul syllable three): short texts need no counting.
        long = [text for text in texts if 4 * len(text) > self.max_length - 2]
        if not long or not self.max_length:
            return 0
        with self._lock:
            pieces = self.model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(piece) > self.max_length for piece in pieces)

    def encode(self, texts: Sequence[str], role: Role) -> Floats:
        """Return unit vectors, float32 (n, dimension), under the role's prompt and tower."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        with progress_bar(total=len(texts), desc=f"embed {role}s", unit="text") as bar:
            for rows in _batches_by_length(texts):
                with self._lock:
                    vectors[rows] = encode(
                        [texts[row] for row in rows],
                        batch_size=len(rows),
                        normalize_embeddings=True,
                        show_progress_bar=False,
                    )
                bar.update(len(rows))
        return vectors

    def save(self, folder: Path) -> None:
        """Write a plain sentence-transformers folder, without a model card."""
        with without_progress_bars():
            self.model.save(str(folder), create_model_card=False, safe_serialization=True)

    def export(self, folder: Path, precision: Precision | None = None) -> None:
        """Write a runtime folder."""
        raise NotImplementedError("the export to ONNX is being built")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars into logs while it reads or writes weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read(folder: Path, device: str) -> SentenceTransformer:
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no sentence-transformers model: it has no modules.json")
    try:
        with without_progress_bars():
            return SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:
        # Damaged folders fail in many ways, deep in three libraries; to the user they are one.
        raise ValueError(f"{folder} holds no readable model: {error}") from error


def _tokenizer_settings(tokenizer: Any) -> object:
    """Return vocabulary, casing and splitting; a fast tokenizer tells all of it as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    settings = json.loads(backend.to_str())
    # Calls leave their truncation and padding behind; they are no property of the model.
    return {k: v for k, v in settings.items() if k not in ("truncation", "padding")}


def _batches_by_length(texts: Sequence[str]) -> list[list[int]]:
    """Group row numbers into batches of like length, the longest first (memory fails early)."""
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(texts)), key=lambda row: -len(texts[row])):
        full = not batches or len(batches[-1]) == _BATCH_TEXTS
        if full or (len(batches[-1]) + 1) * min(longest, 2048) > _BATCH_CHARACTERS:
            batches.append([])
            longest = len(texts[row])
        batches[-1].append(row)
    return batches
