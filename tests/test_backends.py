"""Runtime folders, ONNX Runtime and batches, on a graph that is made without PyTorch."""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tiny_runtime import write_tiny_runtime

from nexus_integrations.backends import is_runtime_folder, load_backbone
from nexus_integrations.backends import onnx as onnx_backend
from nexus_integrations.backends.batches import batches_by_length, padded, token_batches
from nexus_integrations.backends.cache import cached_runtime, source_digest
from nexus_integrations.backends.export import export_backbone
from nexus_integrations.backends.fastest import fastest, fastest_of_model
from nexus_integrations.backends.folder import (
    GRAPH,
    TOKENIZER,
    precise_digest,
    read_runtime,
)
from nexus_integrations.backends.onnx import OnnxBackbone
from nexus_integrations.backends.stream import embed
from nexus_integrations.files import sha256_of

TEXTS = ["a", "two words", "line\nbreak", "emoji 😀", "x" * 100, "a"]


@pytest.fixture
def runtime(tmp_path):
    """A runtime folder of its own for the test."""
    write_tiny_runtime(tmp_path / "runtime")
    return tmp_path / "runtime"


def test_batches_hold_like_lengths_and_no_more_tokens_than_asked():
    """Lengths 3, 1, 3, 3, 2 at 6 tokens a batch: two threes, the third, the two, the one."""
    assert list(token_batches((3, 1, 3, 3, 2), 6, 64)) == [[0, 2], [3], [4], [1]]


def test_batches_have_no_more_rows_than_asked():
    """Lengths 1, 5, 1, 1: the five fills a batch of 5, of the ones two share one."""
    assert list(batches_by_length((1, 5, 1, 1), 5, rows=2)) == [[1], [0, 2], [3]]
    assert list(batches_by_length((), 5)) == []


def test_short_texts_share_a_batch_and_long_ones_do_not():
    """Three quarters of 8 are 6, so 8, 7 and 6 go together, and 5 begins anew; 70 waits for 70, or
    takes 69 along where texts as long as that are padded."""
    lengths = (70, 69, 8, 5, 6, 7, 70)
    assert list(token_batches(lengths, 1000, 64)) == [[0, 6], [1], [2, 5, 4], [3]]
    assert list(token_batches(lengths, 1000, 70)) == [[0, 6, 1], [2, 5, 4], [3]]


def test_lengths_up_to_one_multiple_share_a_batch():
    """73 to 80 are padded to 80, of what a model of 78 tokens reads; 72 begins anew."""
    texts = [[1] * length for length in (72, 78, 73)]
    assert list(token_batches((72, 78, 73), 1000, 64, 8)) == [[1, 2], [0]]
    assert padded(texts[1:], 8, 512)[1].sum(axis=1).tolist() == [78, 73]
    lengths = [padded(texts[1:], 8, most)[0].shape[1] for most in (512, 78, 79)]
    assert lengths == [80, 78, 79]
    assert padded(texts[:1], 8, 512)[0].shape == (1, 72)


def test_padding_by_hand():
    """What is no token is 0 in both."""
    ids, mask = padded([[5, 6], [7, 8, 9]])
    assert ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_text_longer_than_a_batch_is_one():
    """It cannot be divided."""
    assert list(token_batches((9, 9), 4, 64)) == [[0], [1]]


def test_equal_texts_are_embedded_once(runtime):
    """The model sees each text once; every row gets its vector."""
    backbone = load_backbone(runtime)
    seen = []

    def run(ids, mask):
        seen.extend(map(tuple, ids))
        return np.repeat(ids.sum(axis=1, keepdims=True), 2, axis=1).astype(np.float32)

    tokenizer = backbone._model.tokenizer
    found, _ = embed(
        ["ab", "c", "ab"], "query", tokenizer, run, dimension=2, batch_tokens=64, padded_to=64
    )
    assert len(seen) == 2
    np.testing.assert_array_equal(found[0], found[2])
    assert found[0, 0] != found[1, 0]


def test_vectors_do_not_depend_on_their_neighbours(runtime):
    """Alone, together, and among 64 others: the same to 1e-6, at length one."""
    backbone = load_backbone(runtime)
    together = backbone.encode(TEXTS, "document")[0]
    alone = np.concatenate([backbone.encode([text], "document")[0] for text in TEXTS])
    among = backbone.encode([*TEXTS, *(f"filler {n}" for n in range(64))], "document")[0]
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_allclose(among[: len(TEXTS)], together, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_several_batches_run_side_by_side_and_stay_in_order(runtime):
    """Four batches, two at a time: each waits for another, and its vectors find their rows."""
    together, threads = threading.Barrier(2, timeout=30), set()

    def run(ids, mask):
        together.wait()  # breaks where a batch has no other beside it
        threads.add(threading.get_ident())
        return np.stack([ids[:, 1], ids.shape[1] + 0 * ids[:, 1]], axis=1).astype(np.float32)

    def alone(ids, mask):
        raise AssertionError("there are several batches")

    texts = [letter * length for length in (70, 80, 90, 100) for letter in "ab"]
    tokenizer = load_backbone(runtime)._model.tokenizer
    tokenizer = replace(tokenizer, max_length=0)
    found, _ = embed(
        texts,
        "query",
        tokenizer,
        alone,
        dimension=2,
        batch_tokens=256,
        padded_to=64,
        runs=2,
        run_beside=run,
    )
    tokens = tokenizer.tokens(texts, "query").ids
    assert found.tolist() == [[text[1], len(text)] for text in tokens]
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_an_error_of_a_batch_ends_the_others(runtime):
    """What had not begun is not run, and the caller sees the error."""
    ran = []

    def run(ids, mask):
        ran.append(len(ids))
        raise MemoryError("no room")

    tokenizer = replace(load_backbone(runtime)._model.tokenizer, max_length=0)
    texts = ["x" * (70 + n) for n in range(50)]
    with pytest.raises(MemoryError, match="no room"):
        embed(
            texts,
            "query",
            tokenizer,
            run,
            dimension=2,
            batch_tokens=64,
            padded_to=64,
            runs=2,
            run_beside=run,
        )
    assert len(ran) < 50


def test_all_callers_together_use_no_more_threads_than_were_asked_for(runtime, monkeypatch):
    """Six threads with lone texts and lists: runs by all threads and by one share two."""
    backbone = load_backbone(runtime, num_threads=2)
    expected = backbone.encode(TEXTS, "document")[0]
    lists = [f"{'word ' * n} {n}" for n in range(1, 40)]
    of_lists = backbone.encode(lists, "document")[0]
    lock, busy, most = threading.Lock(), [0], [0]
    run_session = onnx_backend.run_session

    def counted(graph, ids, mask):
        threads = 2 if graph is backbone._session else 1
        with lock:
            busy[0] += threads
            most[0] = max(most[0], busy[0])
        try:
            return run_session(graph, ids, mask)
        finally:
            with lock:
                busy[0] -= threads

    monkeypatch.setattr(onnx_backend, "run_session", counted)

    def work(number):
        if number % 2:
            return np.abs(backbone.encode(lists, "document")[0] - of_lists).max()
        alone = [backbone.encode([text], "document")[0][0] for text in TEXTS]
        return np.abs(np.stack(alone) - expected).max()

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(work, range(12))) < 1e-6
    assert most[0] == 2


def test_a_lone_text_does_not_wait_for_a_long_list(runtime, monkeypatch):
    """Asked after the fifth of a hundred batches it is there before the tenth."""
    backbone = load_backbone(runtime, num_threads=2)
    run_session, ran = onnx_backend.run_session, []
    asked, in_turn, lock = threading.Event(), threading.Event(), threading.Lock()

    class Queue:
        """In place of the lock of those who wait: tells when this thread is the next."""

        def __enter__(self):
            lock.acquire()
            if threading.current_thread() is threading.main_thread():
                in_turn.set()

        def __exit__(self, *_):
            lock.release()

    def waiting(graph, ids, mask):
        ran.append(graph)
        if len(ran) >= 5:
            asked.set()
            assert in_turn.wait(60)
        return run_session(graph, ids, mask)

    monkeypatch.setattr(backbone._turns, "_queue", Queue())
    monkeypatch.setattr(onnx_backend, "run_session", waiting)
    monkeypatch.setattr(onnx_backend, "_BATCH_TOKENS", 1)  # a batch of each text
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(backbone.encode, [f"text {n}" for n in range(1000, 1100)], "document")
        assert asked.wait(30)
        backbone.encode(["alone"], "query")[0]
        assert ran.index(backbone._session) < 10
        assert len(long.result(30)[0]) == 100


def test_truncated_texts_are_counted(runtime):
    """33 letters make 33 tokens, one more than is read; a text that comes twice counts twice."""
    backbone = load_backbone(runtime)
    assert backbone.encode(["x" * 32, "x" * 33, "ab", "x" * 33], "query")[1] == 2
    assert backbone.encode(["x" * 33], "document")[1] == 1


def test_a_runtime_folder_says_what_it_does_not_do(runtime):
    """It has one precision, and no PyTorch model."""
    assert is_runtime_folder(runtime)
    with pytest.raises(ValueError, match="holds no PyTorch model"):
        load_backbone(runtime, backend="torch")
    with pytest.raises(ValueError, match="was exported in float32 and does not run in int8"):
        load_backbone(runtime, precision="int8")
    with pytest.raises(ValueError, match="int8 is not made of it"):
        export_backbone(load_backbone(runtime), runtime.parent / "other", "int8")


def test_mistyped_ways_of_running_are_refused(runtime):
    """Backend, precision, threads and device."""
    with pytest.raises(ValueError, match="backend must be one of auto, torch, onnx, got 'tf'"):
        load_backbone(runtime, backend="tf")
    with pytest.raises(ValueError, match="precision must be one of"):
        load_backbone(runtime, precision="int4")
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        load_backbone(runtime, num_threads=0)
    with pytest.raises(ValueError, match="onnx runs on the CPU"):
        load_backbone(runtime, backend="onnx", device="cuda")


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER])
def test_a_truncated_runtime_folder_is_refused(runtime, name):
    """Half of a file, and none of it."""
    data = (runtime / name).read_bytes()
    (runtime / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"was altered: the SHA-256 of {name} differs"):
        load_backbone(runtime)
    (runtime / name).unlink()
    with pytest.raises(ValueError, match=f"is incomplete: {name} is missing"):
        load_backbone(runtime)


def test_a_file_without_a_hash_is_refused(runtime):
    """A graph may name any file of its folder as its weights."""
    (runtime / "other.data").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"its manifest has no hash of other.data"):
        load_backbone(runtime)


def rehash(runtime):
    manifest = json.loads((runtime / "runtime.json").read_text())
    manifest["sha256"] = {name: sha256_of(runtime / name) for name in manifest["sha256"]}
    (runtime / "runtime.json").write_text(json.dumps(manifest))


def swap(runtime, how):
    if how == "graph":
        import onnx
        from onnx import numpy_helper

        model = onnx.load(str(runtime / GRAPH))
        table = numpy_helper.to_array(model.graph.initializer[0])
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(-table, "table"))
        onnx.save(model, str(runtime / GRAPH))
    elif how == "tokenizer":
        text = (runtime / TOKENIZER).read_text()
        (runtime / TOKENIZER).write_text(text.replace('"##z"', '"##zz"'))
    else:
        manifest = json.loads((runtime / "runtime.json").read_text())
        manifest["tokenizer"] |= how
        (runtime / "runtime.json").write_text(json.dumps(manifest))
    rehash(runtime)


@pytest.mark.parametrize(
    "how",
    ["graph", "tokenizer", {"max_length": 8}, {"prompts": {"query": "q: ", "document": ""}}],
)
def test_what_changes_vectors_changes_the_digest(runtime, tmp_path, how):
    """A swapped file with rewritten hashes is another model, and loaded first it stays one."""
    genuine = tmp_path / "genuine"
    shutil.copytree(runtime, genuine)
    swap(runtime, how)
    tampered, backbone = load_backbone(runtime), load_backbone(genuine)
    assert tampered is not backbone
    assert tampered.digest != backbone.digest
    again = tmp_path / "again"
    shutil.copytree(genuine, again)
    assert load_backbone(again) is backbone


def test_what_a_folder_says_of_its_model_counts_for_nothing(runtime):
    """Whoever writes a folder can write any digest into it."""
    before = read_runtime(runtime).digest
    manifest = json.loads((runtime / "runtime.json").read_text())
    (runtime / "runtime.json").write_text(json.dumps({**manifest, "made_from": "0" * 64}))
    backbone = load_backbone(runtime)
    assert backbone.digest == backbone.float32_digest == before != "0" * 64


def test_a_folder_that_changes_after_it_was_read_is_noticed(runtime):
    """A further session, as a fork or a batch needs one, runs the same bytes or none."""
    backbone = OnnxBackbone.load(runtime, 2)
    swap(runtime, "graph")
    with pytest.raises(ValueError, match="was changed since it was read"):
        backbone.encode([f"text {n}" * 60 for n in range(40)], "query")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_the_cache_of_another_user_is_refused(source, monkeypatch):
    """Its graphs could be anybody's; our own is closed to others."""
    place, _, _ = cached_runtime(source, "float32", making([]))
    assert {path.stat().st_mode & 0o077 for path in (place, *place.iterdir())} == {0}
    place.parent.chmod(0o777)
    cached_runtime(source, "float32", making([]))
    assert place.parent.stat().st_mode & 0o077 == 0
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=r"belongs to another user, .* set XDG_CACHE_HOME"):
        cached_runtime(source, "float32", making([]))
    with pytest.raises(PermissionError, match="belongs to another user"):
        fastest_of_model(source, "cpu", {"float32": lambda: Way("float32", 0, 0)})


def test_a_manifest_of_another_version_or_none_is_refused(runtime):
    """Another version, and half of the JSON."""
    manifest = runtime / "runtime.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(text), "version": 9}))
    with pytest.raises(ValueError, match="has format version 9"):
        load_backbone(runtime)
    manifest.write_text(text[:40])
    with pytest.raises(ValueError, match=r"runtime.json is not valid JSON"):
        load_backbone(runtime)


def test_copies_and_pickles_are_the_process_s_one_backbone(runtime):
    """Nothing of the graph travels."""
    backbone = load_backbone(runtime)
    assert copy.deepcopy(backbone) is backbone
    assert pickle.loads(pickle.dumps(backbone)) is backbone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_embeds(runtime):
    """A session's threads are not copied: the child makes another one."""
    backbone = load_backbone(runtime, num_threads=2)
    expected = backbone.encode(TEXTS, "query")[0]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        sender.send(backbone.encode(TEXTS, "query")[0])

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(30), "the child hangs"
    np.testing.assert_array_equal(receiver.recv(), expected)
    process.join()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder that stands for a model's, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def making(made):
    def make(draft):
        made.append(draft)
        draft.rmdir()
        write_tiny_runtime(draft)

    return make


def test_a_graph_is_made_once_and_again_when_damaged(source):
    """A second reading finds it; half of it is no graph; another model has another one."""
    made = []
    place, model, temporary = cached_runtime(source, "float32", making(made))
    assert (len(made), model.dimension, temporary) == (1, 16, False)
    assert cached_runtime(source, "float32", making(made))[0] == place
    assert len(made) == 1
    (place / GRAPH).write_bytes(b"half")
    assert cached_runtime(source, "float32", making(made))[0] == place
    assert len(made) == 2
    (source / "config.json").write_text('{"other": 1}')
    assert cached_runtime(source, "float32", making(made))[0] != place
    assert len(made) == 3


def test_a_cache_that_cannot_be_written_is_done_without(source, tmp_path):
    """The graph lies in a temporary folder, which the caller removes."""
    (tmp_path / "cache").write_text("a file, where the cache should be")
    place, model, temporary = cached_runtime(source, "float32", making([]))
    assert (model.dimension, temporary) == (16, True)
    shutil.rmtree(place)


def test_a_failed_export_leaves_no_graph_and_is_not_tried_again(source, tmp_path, monkeypatch):
    """Neither a draft nor half a graph; with another version of a library it is tried again."""
    tried = []

    def fail(draft):
        tried.append(draft)
        (draft / GRAPH).write_bytes(b"half")
        raise ValueError("cannot be exported")

    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be exported"):
            cached_runtime(source, "float32", fail)
    assert len(tried) == 1
    left = [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert set(left) <= {"", ".json"}  # the lock, and what failed
    monkeypatch.setattr("importlib.metadata.version", lambda package: "another")
    assert cached_runtime(source, "float32", making([]))[2] is False


class Way:
    """A backbone that takes `seconds`, and whose vectors are `angle` away from (1, 0)."""

    clock = 0.0

    def __init__(self, precision, seconds, angle):
        self.precision, self.seconds, self.angle = precision, seconds, angle

    def encode(self, texts, role):
        Way.clock += self.seconds
        return np.tile([[np.cos(self.angle), np.sin(self.angle)]], (len(texts), 1)), 0


@pytest.fixture
def clock(monkeypatch):
    """Time passes in `Way.encode` alone."""
    monkeypatch.setattr("nexus_integrations.backends.fastest.perf_counter", lambda: Way.clock)


def test_the_fastest_is_chosen_of_those_that_lose_little(clock):
    """A cosine of .998 is .0633 away: at .05 the loss is negligible, at .07 it is not."""
    exact, near, far = Way("float32", 0.02, 0), Way("bfloat16", 0.01, 0.05), Way("int8", 0, 0.07)
    assert fastest([exact, near, far]) is near
    assert fastest([exact, far]) is exact
    assert fastest([near, exact]) is near  # the first is the measure; it is the fastest as well


def test_what_was_fastest_stays_so(source, clock):
    """Vectors of two precisions do not mix: a second measurement must not change the answer."""
    slow, fast = Way("float32", 0.01, 0), Way("int8", 0, 0)
    ways = {"float32": lambda: slow, "int8": lambda: fast}
    assert fastest_of_model(source, "cpu", ways) is fast
    fast.seconds = 0.02
    assert fastest_of_model(source, "cpu", ways) is fast
    assert fastest_of_model(source, "cpu", {"float32": lambda: slow}) is slow
    assert fastest_of_model(source, "cuda:0", ways) is slow  # measured anew: another device


def test_auto_without_a_cache_is_refused(source, tmp_path):
    """Where the answer cannot be kept the next process may find another one."""
    (tmp_path / "cache").write_text("a file, where the cache should be")
    with pytest.raises(ValueError, match=r"cannot be written .*: name a precision"):
        fastest_of_model(source, "cpu", {"float32": lambda: Way("float32", 0, 0)})


def test_ways_that_are_not_here_are_left_out(source):
    """A library that is missing; without float32 there is nothing to measure by."""

    def missing():
        raise ImportError("torch is missing")

    exact = Way("float32", 0, 0)
    ways = {"float32": lambda: exact, "bfloat16": missing}
    assert fastest_of_model(source, "cpu", ways) is exact
    with pytest.raises(ImportError, match="torch is missing"):
        fastest_of_model(source, "cpu", {"float32": missing, "int8": lambda: exact})


def test_digests_follow_files_and_precision(source):
    """In float32 a model's own digest; in another precision another one."""
    before = source_digest(source)
    (source / "README.md").write_text("not a model's file")
    assert source_digest(source) == before
    (source / "config.json").write_text('{"a": 1}')
    assert source_digest(source) != before
    assert precise_digest("d", "float32") == "d"
    assert len({precise_digest("d", p) for p in ("float32", "bfloat16", "int8")}) == 3
