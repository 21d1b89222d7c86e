"""Vectors alone: an encoder embeds the questions, an index finds the nearest passages."""

from collections.abc import Sequence
from typing import Protocol

from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Encoder, Hits, VectorIndex

_BATCH = 256  # questions that the index is searched with at a time


class HasEncoder(Protocol):
    """What the embedding models of the framework folders are: they embed by an encoder."""

    @property
    def encoder(self) -> Encoder:
        """The encoder."""
        ...


class DenseRetriever:
    """Rank the passages of an index by the similarity of their vectors to the question's."""

    def __init__(self, index: VectorIndex, encoder: Encoder | HasEncoder) -> None:
        """Join the index and the encoder that filled it, or an embedding model that has one.

        Raises `TypeError` for what neither is nor has an encoder, and `ValueError` for one whose
        vectors have another dimension than the index's.
        """
        found = encoder if isinstance(encoder, Encoder) else getattr(encoder, "encoder", None)
        if not isinstance(found, Encoder):
            raise TypeError(f"a {type(encoder).__name__} is no encoder and has none")
        check_fits(index, found)
        self.index = index
        self.encoder: Encoder = found

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k nearest passages of each question text, best first."""
        vectors = self.encoder.encode_queries(texts)  # (n_queries, dimension)
        starts = range(0, len(vectors), _BATCH)
        return Hits.joined(
            [
                self.index.search(vectors[start : start + _BATCH], k)
                for start in progress_bar(starts, desc="search", unit="batch")
            ]
        )


def check_fits(index: VectorIndex, encoder: Encoder) -> None:
    """Raise `ValueError` when the encoder's vectors have another dimension than the index's."""
    if encoder.dimension != index.dimension:
        raise ValueError(
            f"the encoder makes vectors of dimension {encoder.dimension}, the index holds "
            f"{index.dimension}: it was filled by another model"
        )
