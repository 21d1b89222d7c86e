"""What every index over a store does alike: check arguments, order what was read, make `Hits`."""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike

from nexus_integrations.protocols import Floats, Hits, Metric

# The name under which a store that makes no identity of its own keeps ours.
NOTE = "nexus_identity"


def new_note() -> str:
    """Return an identity for a store."""
    return uuid4().hex


def slices(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover `length`; a store limits what a call may hold."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def unique(ids: Iterable[str]) -> list[str]:
    """Return the ids once each, in the order of their first occurrence."""
    return list(dict.fromkeys(ids))


def check_none_missing(ids: Iterable[str], missing: Container[str]) -> None:
    """Raise `KeyError`, which names the first, when one of `ids` is among `missing`."""
    for id_ in ids:
        if id_ in missing:
            raise KeyError(f"the index holds no document {id_!r}")


def check_vectors(ids: Sequence[str], vectors: Floats, metric: Metric) -> None:
    """Raise `ValueError`, which names the first id, for vectors that no index can rank.

    These are vectors with NaN or infinity and, under the cosine, vectors of length zero.
    `vectors` is (len(ids), dimension).
    """
    squared = np.einsum("ij,ij->i", vectors, vectors)  # (n,): NaN and infinity propagate
    for bad, what in (
        (~np.isfinite(squared), "has NaN or infinite entries"),
        (squared == 0 if metric is Metric.COSINE else None, "is zero, so its cosine is undefined"),
    ):
        if bad is not None and bad.any():
            raise ValueError(
                f"the vector of document {ids[int(np.argmax(bad))]!r} {what} "
                f"({int(bad.sum())} such vectors): embed it again or remove it"
            )


def check_form(id_: str, stored: str) -> None:
    """Raise `ValueError` when `id_` is not in the form in which the store lists it, `stored`.

    Were every form taken, what a search finds would not be recognised as what was asked for.
    """
    if id_ != stored:
        raise ValueError(
            f"the store lists the id {id_!r} as {stored!r}: use that form, for UUIDs "
            "str(uuid.UUID(id)); ids that LangChain's QdrantVectorStore makes come without dashes"
        )


def check_replacement(
    ids: Sequence[str], vectors: ArrayLike, dimension: int, metric: Metric
) -> Floats:
    """Return `vectors` as float32 (len(ids), dimension), fit to be stored under `ids`.

    Raises `ValueError` for an id that occurs twice, another shape, NaN or infinity, and a zero
    vector under the cosine. Whether the store holds the ids is the index's `missing` to say.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.shape != (len(ids), dimension):
        raise ValueError(f"expected vectors of shape {(len(ids), dimension)}, got {rows.shape}")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"id {twice!r} occurs more than once among those to replace")
    check_vectors(ids, rows, metric)
    return rows


def check_queries(queries: ArrayLike, k: int, dimension: int) -> Floats:
    """Return `queries` as float32 (n_queries, dimension).

    Raises `ValueError` for k < 1 and for queries of another dimension.
    """
    rows = np.atleast_2d(np.ascontiguousarray(queries, dtype=np.float32))
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if rows.shape[1] != dimension:
        raise ValueError(
            f"queries have dimension {rows.shape[1]}, the index has {dimension}: "
            "they come from different models"
        )
    return rows


def in_order(ids: Sequence[str], found: Mapping[str, ArrayLike], dimension: int) -> Floats:
    """Return the vectors `found`, float32 (len(ids), dimension), in the order of `ids`.

    Most stores answer in an order of their own, and pass over ids that they do not hold: one that
    is missing raises `KeyError`.
    """
    check_none_missing(ids, set(ids) - found.keys())
    rows = np.empty((len(ids), dimension), dtype=np.float32)
    for row, id_ in enumerate(ids):
        rows[row] = found[id_]
    return rows


def as_hits(found: Sequence[Sequence[tuple[str, float]]]) -> Hits:
    """Return `Hits` of one (id, similarity) list per query, best first.

    An approximate search may find fewer documents for one query than for another: the similarities
    of its row are filled up with −∞.
    """
    width = max((len(row) for row in found), default=0)
    similarities = np.full((len(found), width), -np.inf, dtype=np.float32)
    for number, row in enumerate(found):
        similarities[number, : len(row)] = [similarity for _, similarity in row]
    return Hits([[id_ for id_, _ in row] for row in found], similarities)
