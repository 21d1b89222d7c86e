"""Any embedding model of a framework as an `Encoder`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nexus_integrations.data import check_texts
from nexus_integrations.protocols import Floats

_NO_IDENTITY = frozenset(
    {
        *("api_key", "device", "embed_batch_size", "max_retries", "model_kwargs", "multi_process"),
        *("num_workers", "show_progress", "timeout"),
    }
)
"""Settings of embedding models that change no vector, and secrets, which are renewed."""


class ForeignEncoder:
    """An `Encoder` over an embedding model that this package knows nothing about.

    The model's weights are out of reach, so the fingerprint covers its class, its settings and its
    dimension.
    """

    def __init__(
        self,
        model: object,
        settings: Mapping[str, Any],
        embed_query: Callable[[str], Sequence[float]],
        embed_documents: Callable[[list[str]], Sequence[Sequence[float]]],
        dimension: int | None = None,
    ) -> None:
        """Take the model, its settings by name and its two functions; nothing is embedded yet.

        Without `dimension` it is learned, once, by embedding one word.
        """
        if dimension is not None:
            self.dimension = dimension
        self._embed_query = embed_query
        self._embed_documents = embed_documents
        plain = {
            name: value
            for name, value in settings.items()
            if name not in _NO_IDENTITY and not name.startswith("_") and _is_plain(value)
        }
        self._identity = [type(model).__qualname__, plain]

    @cached_property
    def dimension(self) -> int:
        """The length of a vector."""
        return len(self._embed_query("dimension"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over class, settings and dimension."""
        described = json.dumps([self._identity, self.dimension], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per query: float32 (n, dimension)."""
        check_texts(texts)
        return self._unit([self._embed_query(text) for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per document: float32 (n, dimension)."""
        check_texts(texts)
        return self._unit(self._embed_documents(list(texts)))

    def _unit(self, rows: Sequence[Sequence[float]]) -> Floats:
        vectors: Floats = np.array(rows, dtype=np.float32).reshape(len(rows), self.dimension)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return vectors


def _is_plain(value: object) -> bool:
    """Tell settings, dictionaries of settings too (`encode_kwargs`), from clients and models."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (str, int, float))
