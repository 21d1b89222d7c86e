"""Stand-ins to try things on: an index whose moved vectors stay in memory, a model that remembers.

While `tune` judges, the store that it tunes is read and never written.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Encoder, Floats, Hits, Metric, VectorIndex


class Overlay:
    """A `VectorIndex` over another one: what is replaced is kept here, the other stays as it is."""

    def __init__(self, base: VectorIndex) -> None:
        self.base = base
        self._moved: MemoryIndex | None = None
        self._ours: set[str] = set()

    @property
    def metric(self) -> Metric:
        """That of the other index."""
        return self.base.metric

    @property
    def dimension(self) -> int:
        """That of the other index."""
        return self.base.dimension

    @property
    def approximate(self) -> bool:
        """That of the other index."""
        return self.base.approximate

    def __len__(self) -> int:
        return len(self.base)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the other index does not hold."""
        return self.base.missing(ids)

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all vectors."""
        return self.base.ids(batch_size)

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the vectors as replaced here, or else as stored there."""
        found = self.base.vectors(ids)
        if self._moved is not None:
            rows = np.flatnonzero([id_ in self._ours for id_ in ids]).tolist()
            found[rows] = self._moved.vectors([ids[row] for row in rows])
        return found

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest, of what was replaced here and of what stayed there."""
        if self._moved is None:
            return self.base.search(queries, k)
        ours = self._moved.search(queries, min(k, len(self._moved)))
        found: list[list[tuple[float, str]]] = [
            list(zip(row.tolist(), ids, strict=False))
            for ids, row in zip(ours.ids, ours.similarities, strict=True)
        ]
        waiting = dict.fromkeys(range(len(queries)), 0)  # and how many were found before
        depth = 2 * k
        while waiting:
            hits = self.base.search(queries[list(waiting)], depth)
            unsettled = {}
            for (row, before), ids, near in zip(
                waiting.items(), hits.ids, hits.similarities.tolist(), strict=True
            ):
                stayed = [(s, i) for s, i in zip(near, ids, strict=False) if i not in self._ours]
                if len(stayed) < k and len(ids) > before:
                    unsettled[row] = len(ids)
                else:
                    found[row] += stayed[:k]
            waiting, depth = unsettled, 2 * depth
        best = [sorted(row, key=lambda pair: -pair[0])[:k] for row in found]
        width = max(map(len, best), default=0)
        similarities = np.full((len(best), width), -np.inf, dtype=np.float32)
        for number, near_first in enumerate(best):
            similarities[number, : len(near_first)] = [similarity for similarity, _ in near_first]
        return Hits([[id_ for _, id_ in row] for row in best], similarities)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Keep new vectors here; all earlier ones go."""
        self._moved = MemoryIndex(list(ids), vectors, self.metric)
        self._ours = set(ids)


class Remembering:
    """A backbone that embeds each text once; otherwise the one that it stands for."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._known: dict[tuple[str, str], Floats] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, texts: Sequence[str], role: Any) -> Any:
        """Return unit vectors, float32 (n, dimension), and how many texts were cut off."""
        new = [text for text in dict.fromkeys(texts) if (role, text) not in self._known]
        truncated = 0
        if new:
            vectors, truncated = self._backbone.encode(new, role)
            self._known.update({(role, text): row for text, row in zip(new, vectors, strict=True)})
        rows = [self._known[role, text] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dimension), np.float32), truncated


class RememberingEncoder:
    """Any other encoder, with the same memory for questions."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, Floats] = {}
        self.dimension = encoder.dimension
        self.fingerprint = encoder.fingerprint

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per query text, float32 (n, dimension)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode_queries(new), strict=True))
        return np.stack([self._known[text] for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per document text, float32 (n, dimension)."""
        return self._encoder.encode_documents(texts)


def remembering(encoder: Encoder) -> Encoder:
    """Return an encoder of the same vectors that embeds each question once."""
    if isinstance(encoder, DendriticEncoder):
        backbone: Any = Remembering(encoder.backbone)
        return DendriticEncoder(
            backbone, query_head=encoder.query_head, document_head=encoder.document_head
        )
    return RememberingEncoder(encoder)
