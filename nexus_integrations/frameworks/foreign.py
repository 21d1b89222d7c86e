"""Any embedding model as an `Encoder`: two functions and what tells the model from others."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nexus_integrations.data import check_texts
from nexus_integrations.protocols import Floats

NO_IDENTITY = frozenset(
    {
        *("api_key", "device", "embed_batch_size", "max_retries", "model_kwargs", "multi_process"),
        *("num_workers", "show_progress", "timeout"),
    }
)
"""Settings of embedding models that change no vector, and secrets, which are renewed."""


class ForeignEncoder:
    """An `Encoder` over an embedding model that this package knows nothing about.

    Its weights are out of reach, so that its fingerprint is as good as `identity`.
    """

    def __init__(
        self,
        embed_query: Callable[[str], Sequence[float]],
        embed_documents: Callable[[list[str]], Sequence[Sequence[float]]],
        identity: Any,
    ) -> None:
        """Take the model's functions; `identity` is what JSON can hold: class, name, settings."""
        self._embed_query = embed_query
        self._embed_documents = embed_documents
        self._identity = identity

    @cached_property
    def dimension(self) -> int:
        """The length of a vector, learnt by embedding one word."""
        return len(self._embed_query("dimension"))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the identity and the dimension."""
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
