"""The reference index against numpy and by hand."""

import sys

import numpy as np
import pytest

from nexus_integrations.index.file import FileIndex
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Metric

IDS = ["east", "north", "diagonal"]
VECTORS = np.array([[1, 0], [0, 2], [3, 3]], dtype=np.float32)


@pytest.mark.parametrize(
    ("metric", "found", "similarities"),
    [
        # q = (2, 1), ‖q‖ = √5. Cosines: 2/√5, 2/(2√5), 9/(√5·√18).
        ("cosine", ["diagonal", "east", "north"], [9 / 90**0.5, 2 / 5**0.5, 1 / 5**0.5]),
        # Dot products: 2, 2, 9. Equal ones stand in insertion order.
        ("dot", ["diagonal", "east", "north"], [9, 2, 2]),
        # −‖q − d‖²: −(1 + 1), −(4 + 1), −(1 + 4).
        ("l2", ["east", "north", "diagonal"], [-2, -5, -5]),
    ],
)
def test_similarities_by_hand(metric, found, similarities):
    """Each metric ranks three documents as its formula says, the nearest first."""
    hits = MemoryIndex(IDS, VECTORS, metric).search(np.array([[2, 1]], dtype=np.float32), 3)
    assert hits.ids == [found]
    assert hits.similarities.dtype == np.float32
    np.testing.assert_allclose(hits.similarities[0], similarities, atol=1e-5)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("block", [2**22, 64])
def test_search_is_exact(metric, block, monkeypatch):
    """In one block or in many, the top ten are those of a full sort of all similarities."""
    monkeypatch.setattr("nexus_integrations.index.memory._BLOCK_SCORES", block)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 12)).astype(np.float32)
    queries = rng.normal(size=(7, 12)).astype(np.float32)
    exact = {
        Metric.DOT: queries @ vectors.T,
        Metric.COSINE: (queries @ vectors.T)
        / np.linalg.norm(queries, axis=1)[:, None]
        / np.linalg.norm(vectors, axis=1),
        Metric.L2: -((queries[:, None] - vectors[None]) ** 2).sum(2),
    }[metric]
    order = np.argsort(-exact, axis=1)[:, :10]
    hits = MemoryIndex([f"d{row}" for row in range(300)], vectors, metric).search(queries, 10)
    assert hits.ids == [[f"d{row}" for row in found] for found in order]
    np.testing.assert_allclose(
        hits.similarities, np.take_along_axis(exact, order, axis=1), rtol=1e-4, atol=1e-5
    )


def test_k_beyond_the_size_finds_all():
    """Asked for 10 of 3 documents, search returns 3, and of none, none."""
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    hits = MemoryIndex(IDS, VECTORS).search(queries, 10)
    assert [sorted(found) for found in hits.ids] == [sorted(IDS)] * 2
    assert hits.similarities.shape == (2, 3)
    assert MemoryIndex([], np.zeros((0, 2), np.float32)).search(queries, 10).ids == [[], []]


def test_search_checks_its_arguments():
    """k below one and queries of another dimension are refused."""
    index = MemoryIndex(IDS, VECTORS)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        index.search(np.ones((1, 2), np.float32), 0)
    with pytest.raises(ValueError, match="dimension 3, the index has 2"):
        index.search(np.ones((1, 3), np.float32), 1)


def test_vectors_come_in_the_order_asked():
    """Order, repetition and emptiness are the caller's; the answer is a copy."""
    index = MemoryIndex(IDS, VECTORS)
    np.testing.assert_array_equal(
        index.vectors(["diagonal", "east", "diagonal"]), [[3, 3], [1, 0], [3, 3]]
    )
    assert index.vectors([]).shape == (0, 2)
    index.vectors(["east"])[:] = 9
    np.testing.assert_array_equal(index.vectors(["east"]), [[1, 0]])


def test_ids_come_in_batches():
    """Two and one of three, in insertion order; len counts them."""
    index = MemoryIndex(IDS, VECTORS)
    assert list(index.ids(batch_size=2)) == [["east", "north"], ["diagonal"]]
    assert list(index.ids()) == [IDS]
    assert (len(index), index.dimension, index.metric) == (3, 2, Metric.COSINE)


def test_replace_overwrites_the_named_alone():
    """Two vectors change, in the order of their ids; the third and the number stay."""
    index = MemoryIndex(IDS, VECTORS)
    for _ in range(2):  # twice equals once
        index.replace(["diagonal", "east"], np.array([[5, 5], [6, 6]], dtype=np.float32))
        np.testing.assert_array_equal(index.vectors(IDS), [[6, 6], [0, 2], [5, 5]])
    assert len(index) == 3
    index.replace([], np.zeros((0, 2), np.float32))


def test_the_callers_arrays_stay_apart():
    """Neither does replace write into the array given, nor does that array write into the index."""
    mine = VECTORS.copy()
    index = MemoryIndex(IDS, mine)
    new = np.array([[7, 7]], dtype=np.float32)
    index.replace(["east"], new)
    np.testing.assert_array_equal(mine, VECTORS)
    mine[:] = 0
    new[:] = 0
    np.testing.assert_array_equal(index.vectors(IDS), [[7, 7], [0, 2], [3, 3]])


@pytest.mark.parametrize(
    ("ids", "vectors", "error", "message"),
    [
        (["east", "west"], [[9, 9], [9, 9]], KeyError, "no document 'west'"),
        (["east", "east"], [[9, 9], [9, 9]], ValueError, "more than once"),
        (["east"], [[9, 9], [9, 9]], ValueError, r"shape \(1, 2\), got \(2, 2\)"),
        (["east"], [[9, 9, 9]], ValueError, r"shape \(1, 2\), got \(1, 3\)"),
        (["north", "east"], [[9, 9], [np.nan, 0]], ValueError, "'east' has NaN or infinite"),
        (["north", "east"], [[9, 9], [np.inf, 0]], ValueError, "'east' has NaN or infinite"),
        (["north", "east"], [[9, 9], [0, 0]], ValueError, "'east' is zero"),
    ],
)
def test_replace_refuses_before_it_writes(ids, vectors, error, message):
    """Whatever is wrong with one entry, no entry is written."""
    index = MemoryIndex(IDS, VECTORS)
    with pytest.raises(error, match=message):
        index.replace(ids, np.array(vectors, dtype=np.float32))
    np.testing.assert_array_equal(index.vectors(IDS), VECTORS)


def test_unknown_id_is_named():
    """Asking for a vector that is not stored raises KeyError with the id."""
    with pytest.raises(KeyError, match="no document 'west'"):
        MemoryIndex(IDS, VECTORS).vectors(["east", "west"])


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "b", "a"], np.ones((3, 2)), "'a' occurs more than once"),
        (["a", "b"], np.ones((3, 2)), r"2 ids, vectors of shape \(3, 2\)"),
        (["a", "b"], np.ones(2), r"2 ids, vectors of shape \(2,\)"),
        (["a", "b"], [[1, 1], [np.nan, 1]], "'b' has NaN or infinite"),
        (["a", "b"], [[1, 1], [0, 0]], "'b' is zero, so its cosine is undefined"),
    ],
)
def test_construction_names_what_is_wrong(ids, vectors, message):
    """An index that could not rank its documents is not made."""
    with pytest.raises(ValueError, match=message):
        MemoryIndex(ids, np.array(vectors, dtype=np.float32))


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_zero_vectors_rank_where_they_have_a_similarity(metric):
    """Dot product and distance are defined for a zero vector: ⟨q, 0⟩ = 0, −‖q − 0‖² = −1."""
    index = MemoryIndex(["zero"], np.zeros((1, 2), np.float32), metric)
    hits = index.search(np.array([[1, 0]], dtype=np.float32), 1)
    assert hits.similarities[0, 0] == {"dot": 0, "l2": -1}[metric]


def test_a_file_is_opened_by_either_name(tmp_path):
    """`FileIndex(path)` and `FileIndex.load(path)` alike write what is replaced to the file."""
    path = tmp_path / "vectors.parquet"
    MemoryIndex(["a", "b"], np.eye(2, dtype=np.float32), "dot").save(path)
    for opening in (FileIndex, FileIndex.load):
        opened = opening(path)
        assert (type(opened), opened.metric) == (FileIndex, "dot")
        opened.replace(["a"], 2 * opened.vectors(["a"]))
    assert MemoryIndex.load(path).vectors(["a"]).tolist() == [[4, 0]]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.parquet"):
        FileIndex(tmp_path / "missing.parquet")


def test_without_pyarrow(tmp_path, monkeypatch):
    """Files of vectors need it; the message is the line that installs it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    index = MemoryIndex(["a"], np.ones((1, 2), dtype=np.float32))
    for call in (index.save, MemoryIndex.load, FileIndex):
        with pytest.raises(ImportError, match=r'pip install "nexus-integrations\[jobs\]"'):
            call(tmp_path / "vectors.parquet")
