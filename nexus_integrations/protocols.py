"""The vocabulary of the package: what an encoder, an index and a retriever promise."""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]


class Metric(str, Enum):
    """The similarity by which an index ranks its documents; higher is nearer for all three.

    `COSINE` is ⟨q, d⟩ / (‖q‖·‖d‖), `DOT` is ⟨q, d⟩, `L2` is −‖q − d‖² (the negated squared
    Euclidean distance).
    """

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"

    def __str__(self) -> str:
        return self.value


class Hits(NamedTuple):
    """What a search found, best first.

    `ids[i]` are the ids found for query i; `similarities` is float32 (n_queries, k), in the unit of
    the index's `Metric`. When the index holds fewer than k documents, k is their number.
    """

    ids: list[list[str]]
    similarities: Floats

    @classmethod
    def joined(cls, batches: "Sequence[Hits]") -> "Hits":
        """Return the hits of all queries; the similarities of narrower rows end in −∞."""
        width = max((batch.similarities.shape[1] for batch in batches), default=0)
        padded = [
            np.pad(found, ((0, 0), (0, width - found.shape[1])), constant_values=-np.inf)
            for _, found in batches
        ]
        similarities = np.concatenate([np.zeros((0, width), dtype=np.float32), *padded])
        return cls([ids for batch in batches for ids in batch.ids], similarities)

    @classmethod
    def ranked(cls, ids: list[list[str]]) -> "Hits":
        """Return hits of rankings without similarities, which are NaN."""
        width = max(map(len, ids), default=0)
        return cls(ids, np.full((len(ids), width), np.nan, dtype=np.float32))


@runtime_checkable
class Encoder(Protocol):
    """Text to unit vectors, by role."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that a vector depends on beside its text."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per query text: float32 (n, dimension)."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Floats:
        """Return one unit row per document text: float32 (n, dimension)."""
        ...


@runtime_checkable
class VectorIndex(Protocol):
    """Stored document vectors that can be read, searched and replaced in place.

    A store that cannot do one of these raises `NotImplementedError`, which names the store and what
    to use instead.
    """

    @property
    def metric(self) -> Metric:
        """The similarity that `search` ranks by, read from the store itself."""
        ...

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        ...

    @property
    def approximate(self) -> bool:
        """Whether `search` may miss near documents, as graph and cell indexes do."""
        ...

    def __len__(self) -> int:
        """The number of stored vectors."""
        ...

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the store does not hold."""
        ...

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time."""
        ...

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An id that the store does not hold raises `KeyError`.
        """
        ...

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension)."""
        ...

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite stored vectors in place; id, text and metadata stay, nothing is embedded.

        Replacing twice with the same vectors equals replacing once. An id that the store does not
        hold raises `KeyError` before anything is written.
        """
        ...


@runtime_checkable
class Retriever(Protocol):
    """Question texts to ranked passages."""

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k best passages of each question text, best first.

        Fewer than k come back where fewer are found.
        """
        ...
