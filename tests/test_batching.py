"""Calls that queue for one encoder: gathered, in turns, and each with its own errors."""

import gc
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import numpy as np
import pytest

from nexus_integrations.frameworks import queue as batching
from nexus_integrations.frameworks.queue import EmbeddingQueue, parts


class Model:
    """Embeds a text as its length; waits at a gate and records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.busy = threading.Event()

    def encode(self, texts: list[str]) -> np.ndarray:
        self.batches.append(texts)
        self.threads.add(threading.current_thread().name)
        self.busy.set()
        assert self.gate.wait(30)
        for text in texts:
            if text.startswith("bad"):
                raise ValueError(f"{text} cannot be embedded")
        return np.array([[len(text)] for text in texts], dtype=np.float32)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def queue(model):
    """A queue whose thread is at work on the query "first" until the gate opens."""
    queue = EmbeddingQueue()
    queue.submit(model.encode, ["first"], "query")
    assert model.busy.wait(30)
    return queue


def test_what_waits_is_one_batch(queue, model):
    """Twenty calls that came while the thread was busy are embedded at once, each gets its own."""
    calls = [queue.submit(model.encode, ["x" * n], "query") for n in range(1, 21)]
    model.gate.set()
    assert [call.result(30).tolist() for call in calls] == [[[n]] for n in range(1, 21)]
    assert [len(batch) for batch in model.batches] == [1, 20]
    assert len(model.threads) == 1


def test_a_lone_call_does_not_wait(model, monkeypatch):
    """There is no timer: the queue's thread never waits for a time to pass."""
    model.gate.set()
    queue = EmbeddingQueue()
    timers, wait = [], threading.Condition.wait

    def watched(condition, timeout=None):
        if timeout is not None and threading.current_thread().name in model.threads:
            timers.append(timeout)
        return wait(condition, timeout)

    monkeypatch.setattr(threading.Condition, "wait", watched)
    monkeypatch.setattr(time, "sleep", timers.append)
    for _ in range(20):
        queue.submit(model.encode, ["x"], "query").result(30)
    assert timers == []
    assert all(len(batch) == 1 for batch in model.batches)


def test_a_lone_call_is_embedded_by_its_own_thread(model):
    """No change of thread, and no second batch at a time: what comes meanwhile waits as one."""
    queue = EmbeddingQueue()
    with ThreadPoolExecutor(1, thread_name_prefix="caller") as pool:
        lone = pool.submit(queue.embed_here, model.encode, ["lone"])
        assert model.busy.wait(30)
        assert queue.embed_here(model.encode, ["busy"]) is None
        calls = [queue.submit(model.encode, [text], "query") for text in ("a", "b")]
        assert queue.embed_here(model.encode, ["others wait"]) is None
        model.gate.set()
        assert lone.result(30).tolist() == [[4]]
    assert [call.result(30).tolist() for call in calls] == [[[1]], [[1]]]
    assert model.batches == [["lone"], ["a", "b"]]
    assert sorted(name.split("_")[0] for name in model.threads) == ["caller", "nexus-embedding"]


def test_an_error_of_a_lone_call_leaves_the_queue_free(model):
    """The next one is embedded here as well."""
    model.gate.set()
    queue = EmbeddingQueue()
    with pytest.raises(ValueError, match="bad one"):
        queue.embed_here(model.encode, ["bad one"])
    assert queue.embed_here(model.encode, ["x"]).tolist() == [[1]]


def test_roles_are_not_mixed_and_take_turns(queue, model, monkeypatch):
    """A batch of queries, one of documents, and so on; a query waits for one part at most."""
    monkeypatch.setattr(batching, "_TEXTS", 2)
    documents = [queue.submit(model.encode, [f"d{n}"] * 2, "document") for n in range(3)]
    queries = [queue.submit(model.encode, [f"q{n}"], "query") for n in range(3)]
    model.gate.set()
    wait_for([*documents, *queries], timeout=30)
    assert model.batches[1:] == [["d0", "d0"], ["q0", "q1"], ["d1", "d1"], ["q2"], ["d2", "d2"]]


def test_a_call_alone_shares_with_nobody(queue, model):
    """`alone` keeps a call from joining others, and others from joining it."""
    for text, alone in [("a", False), ("b", True), ("c", False), ("d", False)]:
        last = queue.submit(model.encode, [text], "query", alone=alone)
    model.gate.set()
    last.result(30)
    assert model.batches[1:] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize(("name", "limit"), [("_TEXTS", 4), ("_CHARACTERS", 8)])
def test_a_batch_has_a_limit(queue, model, monkeypatch, name, limit):
    """At most four texts, or eight characters, of ten calls of one text of two characters."""
    monkeypatch.setattr(batching, name, limit)
    calls = [queue.submit(model.encode, [f"q{n}"], "query") for n in range(10)]
    model.gate.set()
    wait_for(calls, timeout=30)
    assert [len(batch) for batch in model.batches[1:]] == [4, 4, 2]


def test_an_error_reaches_the_call_that_caused_it_alone(queue, model):
    """Two bad texts among five calls: three get their vectors, two their own error."""
    texts = ["a", "bad one", "b", "bad two", "c"]
    calls = [queue.submit(model.encode, [text], "query") for text in texts]
    model.gate.set()
    for text, call in zip(texts, calls, strict=True):
        if text.startswith("bad"):
            with pytest.raises(ValueError, match=f"{text} cannot be embedded"):
                call.result(30)
        else:
            assert call.result(30).tolist() == [[1]]


def test_a_missing_vector_is_an_error():
    """A model that gives one vector for two texts would shift those of other callers."""
    queue = EmbeddingQueue()
    call = queue.submit(lambda texts: np.ones((1, 1), np.float32), ["a", "b"], "query")
    with pytest.raises(RuntimeError, match="gave 1 vectors for 2 texts"):
        call.result(30)


def test_a_cancelled_call_is_not_embedded(queue, model):
    """Its neighbours get what is theirs."""
    before, cancelled, after = (
        queue.submit(model.encode, [text], "query") for text in ("aa", "gone", "bbb")
    )
    assert cancelled.cancel()
    model.gate.set()
    assert (before.result(30).tolist(), after.result(30).tolist()) == ([[2]], [[3]])
    assert model.batches[1:] == [["aa", "bbb"]]
    with pytest.raises(CancelledError):
        cancelled.result(30)


def test_all_calls_cancelled(queue, model):
    """Nothing is embedded, and the queue goes on."""
    assert all(queue.submit(model.encode, ["x"], "query").cancel() for _ in range(3))
    model.gate.set()
    assert queue.submit(model.encode, ["y"], "query").result(30).tolist() == [[1]]
    assert model.batches == [["first"], ["y"]]


def test_many_threads_lose_nothing(model):
    """64 threads with 30 calls each, of both roles: every call gets its own vector."""
    model.gate.set()
    queue = EmbeddingQueue()

    def ask(thread: int) -> bool:
        role = "query" if thread % 2 else "document"
        texts = ["x" * (1 + thread * 30 + n) for n in range(30)]
        return all(
            queue.submit(model.encode, [text], role).result(30).tolist() == [[len(text)]]
            for text in texts
        )

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, range(64)))
    assert len(model.threads) == 1


def test_the_thread_ends_with_the_queue(model):
    """A queue that nobody holds leaves no thread behind."""
    model.gate.set()
    queue = EmbeddingQueue()
    queue.submit(model.encode, ["x"], "query").result(30)
    (thread,) = queue._thread._threads
    assert thread.is_alive()
    del queue
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_parts_hold_every_row_once(monkeypatch):
    """From long to short, equal texts side by side, at most 3 texts and 10 padded characters."""
    monkeypatch.setattr(batching, "_TEXTS", 3)
    monkeypatch.setattr(batching, "_CHARACTERS", 10)
    monkeypatch.setattr(batching, "_READ", 8)
    texts = ["aa", "b", "c" * 100, "b", "dd", "e", "aa", "f" * 9]
    assert list(parts(texts)) == [[2], [7], [0, 6, 4], [1, 3, 5]]
    assert list(parts([])) == []
