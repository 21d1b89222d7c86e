"""Vectors alone: an encoder embeds the questions, an index finds the nearest passages."""

from collections.abc import Sequence

from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Encoder, Hits, VectorIndex

_BATCH = 256  # questions that the index is searched with at a time


class DenseRetriever:
    """Rank the passages of an index by the similarity of their vectors to the question's."""

    def __init__(self, index: VectorIndex, encoder: Encoder) -> None:
        """Join the index and the encoder that filled it.

        Raises `ValueError` for an encoder whose vectors have another dimension than the index's.
        """
        check_fits(index, encoder)
        self.index = index
        self.encoder = encoder

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
