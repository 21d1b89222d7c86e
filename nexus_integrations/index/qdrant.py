"""Vectors in a Qdrant collection, local or behind a server."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from nexus_integrations.index.checks import (
    NOTE,
    as_hits,
    check_form,
    check_none_missing,
    check_queries,
    check_replacement,
    in_order,
    new_note,
    slices,
    unique,
)
from nexus_integrations.protocols import Floats, Hits, Metric

try:
    from qdrant_client import models
except ImportError as error:
    raise ImportError(
        'QdrantIndex needs qdrant-client: pip install "nexus-integrations[qdrant]"'
    ) from error

_METRICS = {
    models.Distance.COSINE: Metric.COSINE,
    models.Distance.DOT: Metric.DOT,
    models.Distance.EUCLID: Metric.L2,
}
_QUERY_BATCH = 100
# A server takes requests of 32 MiB, and a float of a JSON request is about 20 characters.
_BATCH_FLOATS = 2**20
_BATCH_SIZE = 1000


class QdrantIndex:
    """A collection of Qdrant, and one of its vectors where it names several.

    Qdrant's ids are UUIDs or unsigned integers. Here they are strings: a UUID with dashes in lower
    case, or decimal digits; another form of one raises `ValueError`. Under the cosine Qdrant stores
    unit vectors, so that is what `vectors` returns. Every point must have the vector.
    """

    def __init__(self, client: Any, collection: str, vector_name: str | None = None) -> None:
        """Wrap `collection` of `client`, a `qdrant_client.QdrantClient`.

        `vector_name` is needed where the collection names its dense vectors, as LlamaIndex does
        for hybrid search ("text-dense"). Raises `ValueError` for a name that is not there, and
        `NotImplementedError` for vectors that do not come back as they were stored.
        """
        self.client = client
        self.collection = collection
        self.vector_name = vector_name or None  # both frameworks write "" for no name
        config = client.get_collection(collection).config
        vectors = config.params.vectors
        # LangChain names a collection's only vector "", which is no name.
        named: dict[str | None, Any] = (
            {name or None: params for name, params in vectors.items()}
            if isinstance(vectors, dict)
            else {None: vectors}
        )
        if self.vector_name not in named or named[self.vector_name] is None:
            raise ValueError(
                f"the Qdrant collection {collection!r} has dense vectors named "
                f"{[name or '' for name, found in named.items() if found]}: give one of these as "
                f"vector_name, not {vector_name!r}"
            )
        params = named[self.vector_name]
        _check_exact(collection, params, config.quantization_config)
        self.metric = _METRICS[params.distance]
        self.dimension = int(params.size)
        self._batch_size = max(1, min(_BATCH_SIZE, _BATCH_FLOATS // self.dimension))

    @property
    def approximate(self) -> bool:
        """Whether Qdrant has indexed vectors, which a search may miss; the others it compares."""
        return bool(self.client.get_collection(self.collection).indexed_vectors_count)

    def __len__(self) -> int:
        """The number of stored points."""
        return int(self.client.count(self.collection, exact=True).count)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the index does not hold, or that cannot be Qdrant's."""
        keys = {}
        for id_ in ids:
            with suppress(KeyError):
                keys[id_] = str(_point_id(id_))
        wanted = unique(keys.values())
        stored: set[str] = set()
        for part in slices(len(wanted), self._batch_size):
            stored.update(str(point.id) for point in self._points(wanted[part], False))
        return {id_ for id_ in ids if keys.get(id_) not in stored}

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all stored points, `batch_size` at a time."""
        start: Any = None
        while True:
            points, start = self.client.scroll(
                self.collection,
                limit=batch_size,
                offset=start,
                with_vectors=False,
                with_payload=False,
            )
            if points:
                yield [str(point.id) for point in points]
            if start is None:
                return

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return the stored vectors, float32 (len(ids), dimension), in the order asked.

        An id that is unknown, or cannot be one of Qdrant's, raises `KeyError`.
        """
        wanted = [str(_point_id(id_)) for id_ in ids]
        found: dict[str, Any] = {}
        once = unique(wanted)
        for part in slices(len(once), self._batch_size):
            for point in self._points(once[part], self.vector_name or True):
                vector = point.vector
                if isinstance(vector, dict):
                    vector = vector.get(self.vector_name or "")
                if vector is not None:
                    found[str(point.id)] = vector
        return in_order(wanted, found, self.dimension)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest documents of each query, float32 (n_queries, dimension)."""
        queries = check_queries(queries, k, self.dimension)
        found: list[list[tuple[str, float]]] = []
        for part in slices(len(queries), _QUERY_BATCH):
            requests = [
                models.QueryRequest(query=query.tolist(), using=self.vector_name, limit=k)
                for query in queries[part]
            ]
            for response in self.client.query_batch_points(self.collection, requests=requests):
                points = response.points
                found.append([(str(point.id), self._similarity(point.score)) for point in points])
        return as_hits(found)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Overwrite the vectors of `ids` with float32 (len(ids), dimension).

        Payload and other vectors stay. Raises `KeyError` and `ValueError` as `MemoryIndex.replace`
        does, before anything is written. Written in batches: an interrupted call has replaced
        some, and may be repeated.
        """
        points = [_point_id(id_) for id_ in ids]
        wanted = [str(point) for point in points]
        vectors = check_replacement(wanted, vectors, self.dimension, self.metric)
        check_none_missing(ids, self.missing(ids))
        name = self.vector_name
        for part in slices(len(points), self._batch_size):
            new = [
                models.PointVectors(id=point, vector=vector if name is None else {name: vector})
                for point, vector in zip(points[part], vectors[part].tolist(), strict=True)
            ]
            self.client.update_vectors(self.collection, points=new, wait=True)

    @property
    def identity(self) -> str:
        """What `mark` left in the collection's metadata, with the vector's name; "" before."""
        config = self.client.get_collection(self.collection).config
        note = (getattr(config, "metadata", None) or {}).get(NOTE)
        return f"qdrant:{note}:{self.vector_name or ''}" if note else ""

    def mark(self) -> str:
        """Give the collection an identity, if it has none, and return it.

        "" where client or server know no metadata (Qdrant before 1.16).
        """
        if not self.identity and "metadata" in models.CollectionConfig.model_fields:
            self.client.update_collection(self.collection, metadata={NOTE: new_note()})
        return self.identity

    def purge(self) -> str:
        """Do nothing: Qdrant offers no call that removes earlier vectors at once."""
        return (
            "Qdrant keeps earlier vectors in its log and segments until its optimizer rewrites "
            "them, and in snapshots"
        )

    def _points(self, ids: Sequence[str], vectors: bool | str) -> Any:
        return self.client.retrieve(
            self.collection,
            ids=[_point_id(id_) for id_ in ids],
            with_vectors=[vectors] if isinstance(vectors, str) else vectors,
            with_payload=False,
        )

    def _similarity(self, score: float) -> float:
        """Turn Qdrant's score, which is the distance ‖q − d‖ for Euclid, into a similarity."""
        return -(score**2) if self.metric is Metric.L2 else score


def _point_id(id_: str) -> str | int:
    """Return the id as Qdrant wants it.

    Raises `KeyError` for one that it cannot hold, `ValueError` for another form of one.
    """
    try:
        number = id_.isascii() and id_.isdecimal() and int(id_) < 2**64
        point: str | int = int(id_) if number else str(UUID(id_))
    except ValueError:
        raise KeyError(
            f"the index holds no document {id_!r}: ids in Qdrant are UUIDs or unsigned integers"
        ) from None
    check_form(id_, str(point))
    return point


def _check_exact(collection: str, params: Any, quantization: Any) -> None:
    """Raise `NotImplementedError` for vectors that are not ranked as they were stored."""
    kind = str(getattr(params.datatype, "value", params.datatype) or "float32")
    for found, what in (
        (quantization or params.quantization_config, "quantised vectors"),
        (params.multivector_config, "several vectors per point"),
        (kind != "float32", f"{kind} vectors"),
        (params.distance not in _METRICS, f"the distance {params.distance}"),
    ):
        if found:
            raise NotImplementedError(
                f"the Qdrant collection {collection!r} has {what}: use one float32 vector per "
                "point, not quantised, with the distance Cosine, Dot or Euclid"
            )
