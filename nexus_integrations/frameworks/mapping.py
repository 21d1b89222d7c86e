"""An index over a dictionary of Python lists, as the frameworks' in-memory stores keep vectors."""

from collections.abc import Iterator, MutableMapping, Sequence
from itertools import islice

import numpy as np

from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats, Hits, Metric


class MappingIndex:
    """Vectors in a mapping from id to a list of floats, ranked by the cosine, searched exactly.

    Nothing is copied: every call reads the mapping as it is, and `replace` writes lists of Python
    floats to it, which JSON takes.
    """

    metric = Metric.COSINE
    approximate = False

    def __init__(self, stored: MutableMapping[str, list[float]]) -> None:
        self._stored = stored

    @property
    def dimension(self) -> int:
        """The length of a vector; 0 while nothing is stored."""
        return len(next(iter(self._stored.values()), ()))

    def __len__(self) -> int:
        """The number of stored vectors."""
        return len(self._stored)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the store does not hold."""
        return {id_ for id_ in ids if id_ not in self._stored}

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time, in insertion order."""
        remaining = iter(list(self._stored))
        while batch := list(islice(remaining, batch_size)):
            yield batch

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`, a vector of another length than the first `ValueError`.
        """
        self._check_stored(ids)
        dimension = self.dimension
        rows = [self._stored[id_] for id_ in ids]
        for id_, row in zip(ids, rows, strict=True):
            if len(row) != dimension:
                raise ValueError(
                    f"the vector of document {id_!r} has dimension {len(row)}, others {dimension}: "
                    "the store was filled by two models; fill it anew by one"
                )
        return np.array(rows, dtype=np.float32).reshape(len(rows), dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension), exactly."""
        ids = list(self._stored)
        return MemoryIndex(ids, self.vectors(ids)).search(queries, k)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Raises `KeyError` for an unknown id and `ValueError` for vectors of another shape, NaN,
        infinity, zero or duplicates, each before anything is written.
        """
        self._check_stored(ids)
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape != (len(ids), self.dimension):
            raise ValueError(
                f"expected vectors of shape {(len(ids), self.dimension)}, got {vectors.shape}"
            )
        MemoryIndex(ids, vectors)  # raises for what cannot be ranked
        for id_, row in zip(ids, vectors.tolist(), strict=True):
            self._stored[id_] = row

    def _check_stored(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            if id_ not in self._stored:
                raise KeyError(f"the store holds no document {id_!r}")
