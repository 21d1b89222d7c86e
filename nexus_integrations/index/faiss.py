"""Vectors in a FAISS index: flat, IVF-flat, HNSW-flat, and IDMap2 over these."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from nexus_integrations.index.checks import (
    as_hits,
    check_none_missing,
    check_queries,
    check_replacement,
    slices,
)
from nexus_integrations.protocols import Floats, Hits, Integers, Metric

try:
    # Any: the types that FAISS ships leave out much of what it has.
    faiss: Any = import_module("faiss")
except ImportError as error:
    raise ImportError('FaissIndex needs FAISS: pip install "nexus-integrations[faiss]"') from error

_METRICS = {faiss.METRIC_INNER_PRODUCT: Metric.DOT, faiss.METRIC_L2: Metric.L2}
_FLAT = (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexFlatL2)
_INSTEAD = (
    "does not give vectors back as they were stored, or takes no new ones in place: use a flat, "
    "IVF-flat or HNSW-flat index, or IDMap2 over one"
)


class FaissIndex:
    """A FAISS index in memory, and the ids that belong to its numbers.

    FAISS knows the inner product and L2, no cosine: an inner product over unit vectors is one, and
    is reported as the dot product all the same. `replace` changes the given object, never a file:
    write that again with the framework's or FAISS's own function. Under HNSW it builds the graph
    anew, with the same parameters and in the same object: as long as adding all vectors takes.
    FAISS allows no search on another thread meanwhile.
    """

    def __init__(self, index: Any, ids: Sequence[str] | Mapping[int, str]) -> None:
        """Wrap `index`, a `faiss.Index`; `ids` maps its numbers to ids, a sequence from 0 on.

        Numbers are positions, or what `add_with_ids` was given. Raises `NotImplementedError` for a
        type that cannot give its vectors back exactly or take new ones, and `ValueError` when
        `ids` are not exactly those of the stored vectors, each once.
        """
        if not isinstance(index, faiss.Index):
            raise NotImplementedError(f"FAISS {type(index).__name__} {_INSTEAD}")
        self.index = index
        # What FAISS casts does not own its memory: it lives as long as the index given.
        self._outer = faiss.downcast_index(index)
        wrapped = type(self._outer) is faiss.IndexIDMap2
        self._inner = faiss.downcast_index(self._outer.index) if wrapped else self._outer
        self._flat = _storage(self._inner)
        if self._outer.metric_type not in _METRICS:
            raise NotImplementedError(
                f"FAISS metric {self._outer.metric_type} is not supported: use "
                "METRIC_INNER_PRODUCT or METRIC_L2"
            )
        self.metric = _METRICS[self._outer.metric_type]
        numbers = _numbers(self._outer, self._inner, wrapped).tolist()
        names = dict(ids) if isinstance(ids, Mapping) else dict(enumerate(ids))
        if len(set(numbers)) < len(numbers):
            raise ValueError("the FAISS index holds a number twice: build it anew")
        if set(numbers) != set(names) or len(set(names.values())) < len(names):
            raise ValueError(
                f"expected one id for each of the {len(numbers)} numbers in the FAISS index, each "
                f"id once; got {len(set(names.values()))} ids for {len(names)} numbers"
            )
        self._names: dict[int, str] = {number: names[number] for number in numbers}
        # Within IDMap2 a vector is known by its position.
        inside = range(len(numbers)) if wrapped else numbers
        self._inside = dict(zip(self._names.values(), inside, strict=True))

    @property
    def approximate(self) -> bool:
        """Whether a search may miss neighbours: HNSW, and IVF that probes some of its cells."""
        if type(self._inner) is faiss.IndexIVFFlat:
            return bool(self._inner.nprobe < self._inner.nlist)
        return type(self._inner) is faiss.IndexHNSWFlat

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self._outer.d)

    def __len__(self) -> int:
        """The number of stored vectors."""
        return int(self._outer.ntotal)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold."""
        return set(ids) - self._inside.keys()

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored vectors, `batch_size` at a time."""
        self._check_unchanged()
        names = list(self._inside)
        for part in slices(len(names), batch_size):
            yield names[part]

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An unknown id raises `KeyError`.
        """
        inside = self._inside_numbers(ids)
        if not len(inside):
            return np.zeros((0, self.dimension), dtype=np.float32)
        with self._readable() as stored:
            rows: Floats = stored.reconstruct_batch(inside)
        return rows

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension).

        By the index's own search: `nprobe` and `efSearch` are those set on it.
        """
        queries = check_queries(queries, k, self.dimension)
        self._check_unchanged()
        if not len(self):
            return as_hits([[] for _ in queries])
        scores, found = self._outer.search(queries, min(k, len(self)))  # (n_queries, k)
        if self.metric is Metric.L2:
            scores = -scores  # FAISS gives squared distances
        return as_hits(
            [  # number −1 fills the places of what an approximate search did not find
                [(self._names[number], score) for number, score in row if number >= 0]
                for row in (
                    list(zip(*pair, strict=True))
                    for pair in zip(found.tolist(), scores.tolist(), strict=True)
                )
            ]
        )

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Raises `KeyError` and `ValueError` as `MemoryIndex.replace` does, before anything is
        written.
        """
        vectors = check_replacement(ids, vectors, self.dimension, self.metric)
        inside = self._inside_numbers(ids)
        if not len(inside):
            return
        if type(self._inner) is faiss.IndexIVFFlat:
            with self._readable() as stored:  # a vector may have to change its cell
                stored.update_vectors(inside, vectors)
        elif type(self._inner) is faiss.IndexHNSWFlat:
            rows = self._flat.reconstruct_n(0, len(self))  # (n, dimension)
            rows[inside] = vectors
            self._inner.reset()  # keeps M, efConstruction and efSearch
            self._inner.add(rows)
        else:
            size = len(self) * self.dimension
            rows = faiss.rev_swig_ptr(self._flat.get_xb(), size).reshape(-1, self.dimension)
            rows[inside] = vectors
            if type(self._flat) is faiss.IndexFlatL2 and self._flat.cached_l2norms.size():
                self._flat.sync_l2norms()

    def purge(self) -> str:
        """Do nothing: in memory an earlier vector is gone once it is replaced."""
        return "files that were written from the FAISS index before keep earlier vectors"

    def _inside_numbers(self, ids: Sequence[str]) -> Integers:
        self._check_unchanged()
        check_none_missing(ids, self.missing(ids))
        return np.array([self._inside[id_] for id_ in ids], dtype=np.int64)

    def _check_unchanged(self) -> None:
        if len(self) != len(self._names):
            raise ValueError(
                f"the FAISS index held {len(self._names)} vectors when it was wrapped and holds "
                f"{len(self)} now: make a new FaissIndex"
            )

    @contextmanager
    def _readable(self) -> Iterator[Any]:
        """Give the index that finds vectors by number; IVF needs a map for it.

        The map is taken away again: while there is one, FAISS refuses some ways of adding and
        removing.
        """
        if type(self._inner) is not faiss.IndexIVFFlat:
            yield self._flat
            return
        before = self._inner.direct_map.type
        self._inner.set_direct_map_type(faiss.DirectMap.Hashtable)
        try:
            yield self._inner
        finally:
            self._inner.set_direct_map_type(before)


def _storage(inner: Any) -> Any:
    """Return the index that holds the vectors' floats; raise `NotImplementedError` without one."""
    flat = faiss.downcast_index(inner.storage) if type(inner) is faiss.IndexHNSWFlat else inner
    if type(inner) is faiss.IndexIVFFlat:
        writable = type(faiss.downcast_InvertedLists(inner.invlists)) is faiss.ArrayInvertedLists
    elif type(flat) in _FLAT:
        writable = flat.codes.is_owned
    else:
        raise NotImplementedError(f"FAISS {type(flat).__name__} {_INSTEAD}")
    if not writable:
        raise NotImplementedError(
            f"this FAISS {type(inner).__name__} lies on disk and cannot be changed: read it into "
            "memory with faiss.read_index(path)"
        )
    return flat


def _numbers(index: Any, inner: Any, wrapped: bool) -> Integers:
    """Return the numbers of the stored vectors, int64 (n,), by position where there is one."""
    if wrapped:
        return np.asarray(faiss.vector_to_array(index.id_map), dtype=np.int64)
    if type(inner) is faiss.IndexIVFFlat:
        cells = inner.invlists
        sizes = [cells.list_size(cell) for cell in range(inner.nlist)]
        parts = [
            faiss.rev_swig_ptr(cells.get_ids(cell), size).copy()
            for cell, size in enumerate(sizes)
            if size
        ]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
    return np.arange(index.ntotal)
