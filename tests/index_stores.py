"""The stores that hold an index for the contract: each filled through its own client.

Documents have a text "text of <id>" and a page, so that tests see whether `replace` keeps them.
"""

import socket
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import pytest

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex

ALL = ("cosine", "dot", "l2")


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MemoryStore:
    """The reference. Other stores have the same methods; `reopen` is None for none."""

    metrics = ALL
    normalises = ()
    needs = None
    approximate = False
    identified = False  # whether the store has an identity

    def __init__(self, folder: Path, service) -> None:
        self.folder = folder
        self.service = service

    def names(self, count: int) -> list[str]:
        """Ids that quoting must survive."""
        return [f'é "{row}" o\'clock' for row in range(count)]

    def fill(self, ids, vectors, metric):
        return MemoryIndex(ids, vectors, metric)

    reopen = None

    def contents(self, id_):
        """What the store holds under the id beside the vector."""

    def close(self) -> None:
        """Let go of what `fill` opened."""


class FileStore(MemoryStore):
    def fill(self, ids, vectors, metric):
        MemoryIndex(ids, vectors, metric).save(self.folder / "index.parquet")
        return self.reopen()

    def reopen(self):
        return FileIndex(self.folder / "index.parquet")


class FaissStore(MemoryStore):
    """`Flat` here; the subclasses change the factory's string."""

    needs = "faiss"
    metrics = ("dot", "l2")
    factory = "Flat"

    def fill(self, ids, vectors, metric):
        import faiss

        from nexus_integrations.index.faiss import FaissIndex

        kind = {"dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}[metric]
        native = faiss.index_factory(vectors.shape[1], self.factory, kind)
        self.ids = dict(enumerate(ids))
        inner = faiss.downcast_index(native.index) if "IDMap" in self.factory else native
        if "IVF" in self.factory:
            native.train(vectors)
            inner.nprobe = 4  # all cells
        if "HNSW" in self.factory:
            inner.hnsw.efSearch = 400
        if "IDMap" in self.factory:
            self.ids = {7 * row + 3: id_ for row, id_ in enumerate(ids)}
            native.add_with_ids(vectors, np.array(list(self.ids)))
        else:
            native.add(vectors)
        self.index = FaissIndex(native, self.ids)
        return self.index

    def reopen(self):
        import faiss

        from nexus_integrations.index.faiss import FaissIndex

        faiss.write_index(self.index.index, str(self.folder / "index.faiss"))
        return FaissIndex(faiss.read_index(str(self.folder / "index.faiss")), self.ids)


class FaissIVF(FaissStore):
    factory = "IVF4,Flat"


class FaissHNSW(FaissStore):
    factory = "HNSW16,Flat"
    approximate = True


class FaissIDMap(FaissStore):
    factory = "IDMap2,Flat"


class FaissIDMapIVF(FaissStore):
    factory = "IDMap2,IVF4,Flat"


class FaissIDMapHNSW(FaissStore):
    factory = "IDMap2,HNSW16,Flat"
    approximate = True


class ChromaStore(MemoryStore):
    """A folder."""

    needs = "chromadb"
    identified = True
    approximate = True

    def open(self):
        import chromadb

        return chromadb.PersistentClient(
            str(self.folder), chromadb.Settings(anonymized_telemetry=False)
        )

    def fill(self, ids, vectors, metric):
        from nexus_integrations.index.chroma import ChromaIndex

        client = self.open()
        self.name = f"docs{uuid5(NAMESPACE_OID, str(self.folder)).hex}"
        space = {"dot": "ip"}.get(metric, metric)
        # Few documents get a graph dense enough to miss none of them.
        graph = {"ef_search": 400, "max_neighbors": 64} if len(ids) < 1000 else {}
        self.collection = client.create_collection(
            self.name, configuration={"hnsw": {"space": space, **graph}}
        )
        for start in range(0, len(ids), 5000):
            part = ids[start : start + 5000]
            self.collection.add(
                ids=part,
                embeddings=vectors[start : start + 5000],
                documents=[f"text of {id_}" for id_ in part],
                metadatas=[{"page": 7}] * len(part),
            )
        return ChromaIndex(self.collection)

    def reopen(self):
        from nexus_integrations.index.chroma import ChromaIndex

        if type(self) is ChromaStore:  # a client of the same folder would share its state
            from chromadb.api.shared_system_client import SharedSystemClient

            SharedSystemClient.clear_system_cache()
        self.collection = self.open().get_collection(self.name)
        return ChromaIndex(self.collection)

    def contents(self, id_):
        got = self.collection.get(ids=[id_], include=["documents", "metadatas"])
        return got["documents"], got["metadatas"]


class ChromaServerStore(ChromaStore):
    def open(self):
        import chromadb

        return chromadb.HttpClient(
            "127.0.0.1",
            self.service("chroma_port"),
            settings=chromadb.Settings(anonymized_telemetry=False),
        )


class QdrantStore(MemoryStore):
    """One unnamed vector; in memory, since a local folder takes 14 ms to write one point."""

    needs = "qdrant_client"
    identified = True
    normalises = ("cosine",)
    vector_name = None
    sparse = False

    def names(self, count):
        return [str(uuid5(NAMESPACE_OID, str(row))) for row in range(count)]

    def open(self):
        from qdrant_client import QdrantClient

        return QdrantClient(":memory:")

    def fill(self, ids, vectors, metric):
        from qdrant_client import models

        from nexus_integrations.index.qdrant import QdrantIndex

        self.client = self.open()
        distance = {"cosine": "Cosine", "dot": "Dot", "l2": "Euclid"}[metric]
        params = models.VectorParams(size=vectors.shape[1], distance=models.Distance(distance))
        named = {self.vector_name: params, "title": params}
        self.client.create_collection(
            "docs",
            vectors_config=params if self.vector_name is None else named,
            sparse_vectors_config={"words": models.SparseVectorParams()} if self.sparse else None,
        )
        self.client.upsert("docs", [self.point(*pair) for pair in zip(ids, vectors, strict=True)])
        return QdrantIndex(self.client, "docs", self.vector_name)

    def point(self, id_, vector):
        from qdrant_client import models

        stored = vector.tolist()
        if self.vector_name is not None:
            stored = {self.vector_name: stored, "title": [1.0] * len(stored)}
        if self.sparse:
            stored["words"] = models.SparseVector(indices=[3, 5], values=[0.5, 2.0])
        payload = {"text": f"text of {id_}", "page": 7}
        return models.PointStruct(id=id_, vector=stored, payload=payload)

    def contents(self, id_):
        (point,) = self.client.retrieve("docs", [id_], with_vectors=True)
        others = point.vector if isinstance(point.vector, dict) else {}
        others.pop(self.vector_name, None)
        return point.payload, repr(others)

    def close(self):
        self.client.close()


class QdrantNamed(QdrantStore):
    vector_name = "body"


class QdrantHybrid(QdrantNamed):
    sparse = True


class QdrantFolder(QdrantStore):
    """Only for reopening: see above."""

    def open(self):
        from qdrant_client import QdrantClient

        return QdrantClient(path=str(self.folder))

    def reopen(self):
        from nexus_integrations.index.qdrant import QdrantIndex

        self.client.close()
        self.client = self.open()
        return QdrantIndex(self.client, "docs")


class LanceStore(MemoryStore):
    """A table without a vector index."""

    needs = "lancedb"
    identified = True
    indexed = False

    def fill(self, ids, vectors, metric):
        import lancedb
        import pyarrow as pa

        from nexus_integrations.index.lancedb import LanceDBIndex

        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        columns = {
            "doc id": pa.array(ids),
            "page": pa.array([7] * len(ids)),
            "vec": values,
            "text": pa.array([f"text of {id_}" for id_ in ids]),
        }
        self.table = lancedb.connect(self.folder).create_table("docs", pa.table(columns))
        self.metric = metric
        if self.indexed:
            from lancedb.index import IvfFlat

            self.metric = None  # the index's
            self.table.create_index("vec", config=IvfFlat(distance_type=metric, num_partitions=4))
        return LanceDBIndex(self.table, "doc id", "vec", self.metric)

    def reopen(self):
        import lancedb

        from nexus_integrations.index.lancedb import LanceDBIndex

        self.table = lancedb.connect(self.folder).open_table("docs")
        return LanceDBIndex(self.table, "doc id", "vec", self.metric)

    def contents(self, id_):
        where = "`doc id` = '" + id_.replace("'", "''") + "'"
        return self.table.search().where(where).select(["page", "text"]).to_list()


class LanceIndexed(LanceStore):
    indexed = True
    approximate = True


class PostgresStore(MemoryStore):
    """A table without a vector index, with names that need quoting."""

    needs = "psycopg"
    identified = True
    indexed = False

    def fill(self, ids, vectors, metric):
        import psycopg

        self.uri = self.service("postgres_uri")
        self.connection = psycopg.connect(self.uri)
        self.metric = metric
        dimension = vectors.shape[1]
        self.connection.execute(
            f'CREATE TABLE "Data ""x""" ("Node Id" varchar, page int, text varchar, '
            f"embedding vector({dimension}))"
        )
        self.connection.execute(
            'INSERT INTO "Data ""x""" SELECT id, 7, \'text of \' || id, v '
            "FROM unnest(%s::text[], %s::vector[]) AS new(id, v)",
            (ids, [str(vector.tolist()) for vector in vectors]),
        )
        if self.indexed:
            kind = {"dot": "ip"}.get(metric, metric)
            self.connection.execute(
                f'CREATE INDEX ON "Data ""x""" USING hnsw (embedding vector_{kind}_ops) '
                "WITH (ef_construction = 200)"
            )
            self.metric = None  # the index's
        self.connection.commit()
        return self.index(self.connection)

    def index(self, connection):
        from nexus_integrations.index.postgres import PostgresIndex

        return PostgresIndex(connection, 'Data "x"', "Node Id", "embedding", metric=self.metric)

    def reopen(self):
        self.connection.close()
        index = self.index(self.uri)
        self.connection = index.connection
        return index

    def contents(self, id_):
        rows = self.connection.execute(
            'SELECT page, text FROM "Data ""x""" WHERE "Node Id" = %s', (id_,)
        ).fetchall()
        self.connection.commit()
        return rows

    def close(self):
        self.connection.execute('DROP TABLE "Data ""x"""')
        self.connection.commit()
        self.connection.close()


class PostgresIndexed(PostgresStore):
    indexed = True
    approximate = True


class MilvusStore(MemoryStore):
    """Milvus Lite in a folder."""

    needs = "milvus_lite"
    identified = True

    def open(self):
        from pymilvus import MilvusClient

        return MilvusClient(str(self.folder / "milvus.db"))

    def fill(self, ids, vectors, metric):
        from pymilvus import DataType

        from nexus_integrations.index.milvus import MilvusIndex

        self.client = self.open()
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("text", DataType.VARCHAR, max_length=100)
        schema.add_field("vec", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        params = self.client.prepare_index_params()
        kind = {"dot": "IP"}.get(metric, metric.upper())
        params.add_index("vec", index_type="FLAT", metric_type=kind)
        self.client.create_collection("docs", schema=schema, index_params=params)
        rows = [
            {"key": id_, "text": f"text of {id_}", "page": 7, "vec": vector}
            for id_, vector in zip(ids, vectors.tolist(), strict=True)
        ]
        for start in range(0, len(rows), 1000):
            self.client.insert("docs", rows[start : start + 1000])
        return MilvusIndex(self.client, "docs", "key", "vec")

    def reopen(self):
        from nexus_integrations.index.milvus import MilvusIndex

        self.client.close()
        self.client = self.open()
        return MilvusIndex(self.client, "docs", "key", "vec")

    def contents(self, id_):
        text = id_.replace('"', '\\"')
        return [
            (row["text"], row["page"])
            for row in self.client.query(
                "docs", filter=f'key == "{text}"', output_fields=["text", "page"]
            )
        ]

    def close(self):
        self.client.close()


STORES = {
    "memory": MemoryStore,
    "file": FileStore,
    "faiss-flat": FaissStore,
    "faiss-ivf": FaissIVF,
    "faiss-hnsw": FaissHNSW,
    "faiss-idmap": FaissIDMap,
    "faiss-idmap-ivf": FaissIDMapIVF,
    "faiss-idmap-hnsw": FaissIDMapHNSW,
    "chroma-folder": ChromaStore,
    "chroma-server": ChromaServerStore,
    "qdrant": QdrantStore,
    "qdrant-named": QdrantNamed,
    "qdrant-hybrid": QdrantHybrid,
    "lancedb": LanceStore,
    "lancedb-indexed": LanceIndexed,
    "postgres": PostgresStore,
    "postgres-hnsw": PostgresIndexed,
    "milvus": MilvusStore,
}


def open_store(kind: type[MemoryStore], folder: Path, service) -> MemoryStore:
    """The store, or a skipped test where its client is not installed."""
    if kind.needs:
        pytest.importorskip(kind.needs, reason=f"{kind.needs} is not installed")
    return kind(folder, service)
