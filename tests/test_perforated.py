"""Growing dendrites with perforatedai in a child process, and how that process can end."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from nexus_integrations.evaluation import evaluate
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training import growing
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.growing import grow
from nexus_integrations.training.loop import Schedule
from nexus_integrations.training.objectives import RetrievalObjective

pytestmark = [pytest.mark.dendrites, pytest.mark.usefixtures("perforatedai")]

SCHEDULE = Schedule(epochs=3, learning_rate=0.01, batch_size=8, weight_decay=0.0)
OPTIONS = {"dendrites": 1, "tries": 1, "seed": 0}


def make_objective() -> RetrievalObjective:
    """24 queries and documents in 8 dimensions; each query is its answer, rotated and noisy."""
    generator = torch.Generator().manual_seed(0)

    def units(n):
        return torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)

    documents = units(24)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    queries = torch.nn.functional.normalize(documents @ rotation + 0.2 * units(24), dim=1)
    answers = torch.stack([torch.arange(24), torch.arange(24)], dim=1)
    return RetrievalObjective(
        queries=queries,
        documents=documents,
        answers=answers,
        dev_queries=queries[:12].clone(),
        dev_answers=answers[:12].clone(),
        scale=20.0,
        gamma=0.0,
        anchor=0.0,
    )


def grow_once(epochs=None, kind="query", schedule=SCHEDULE, **options):
    epochs = [] if epochs is None else epochs
    return grow(make_objective(), kind, schedule, **{**OPTIONS, **options}, on_epoch=epochs.append)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Temporary folders go where the test can see them."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def children(monkeypatch):
    """The child processes that `grow` starts."""
    started = []
    popen = subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(growing.subprocess, "Popen", start)
    return started


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(condition, seconds=600) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.model
def test_dendrites_grow_on_the_demo_corpus(clinic, clinic_encoder, clinic_index, tmp_path):
    """A dendrite is grown and kept, and the head returned scores what was reported."""
    train, dev, _ = clinic
    config = FinetuneConfig(dendrites=1, tries=1, epochs=4)
    result = finetune(clinic_encoder, train, dev, config, index=clinic_index)
    head = result.encoder.query_head
    assert head.dendrites == 1
    assert not head.is_identity
    assert {epoch.dendrites for epoch in result.history} >= {0, 1}
    linear, grown = result.history[0].parameters, result.history[-1].parameters
    assert linear == 384 * 384
    assert grown == 2 * 384 * 384 + 384  # a dendrite, and how much of it goes to each output
    assert result.score > result.baseline_score + 0.1
    found = evaluate(
        DenseRetriever(clinic_index, result.encoder), dev, metrics=["ndcg@10"]
    ).metrics["ndcg@10"]
    assert found == pytest.approx(result.score, abs=1e-6)
    # A head that was grown is used without perforatedai: it is saved and loaded as any other.
    head.save(tmp_path / "head.safetensors")
    loaded = type(head).load(tmp_path / "head.safetensors")
    vectors = clinic_index.vectors(next(clinic_index.ids()))
    np.testing.assert_array_equal(loaded.transform(vectors), head.transform(vectors))


def test_a_head_that_differs_from_the_grown_one_is_refused(monkeypatch):
    """The child's outputs are the judge: a copy off by more than rounding is an error."""
    monkeypatch.setattr(growing, "_TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"the copied head differs from the grown one by"):
        grow_once()


def test_the_head_is_that_of_the_best_epoch():
    """The score reported is that of the head returned, by however little it beats another."""
    for seed in (0, 1, 2):
        epochs, objective = [], make_objective()
        (head,) = grow_once(epochs, seed=seed, schedule=replace(SCHEDULE, epochs=8)).heads
        queries = head.transform(objective.dev_queries.numpy())
        order = np.argsort(-queries @ objective.documents.numpy().T, axis=1)
        ranks = np.argmax(order == objective.dev_answers[:, 1:].numpy(), axis=1)
        found = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
        assert found == pytest.approx(max(epoch.score for epoch in epochs), abs=1e-6)


def test_each_side_grows_its_own_head():
    """heads "separate" gives two heads, one per role."""
    queries, documents = grow_once(kind="separate").heads
    assert not np.array_equal(queries.weight, documents.weight)


def test_two_dendrites_are_copied_with_what_lies_between(temporary):
    """Cycles of two epochs grow two; `grow` holds the copy against the outputs of the child."""
    epochs = []
    schedule = replace(SCHEDULE, epochs=2)
    (head,) = grow_once(epochs, dendrites=2, schedule=schedule, dev_chooses=False).heads
    assert max(epoch.dendrites for epoch in epochs) == 2
    assert head.dendrites == 2
    assert head.between[1, 0].any()
    assert list(temporary.glob("nexus-*")) == []


def test_runs_in_turn_and_at_once_give_equal_heads(temporary):
    """One run after another, and two in threads kind by kind, with equal seeds."""
    heads = [grow_once().heads[0]]
    threads = [
        threading.Thread(target=lambda: heads.append(grow_once().heads[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heads) == 3
    for head in heads[1:]:
        for name, array in heads[0].arrays.items():
            np.testing.assert_array_equal(head.arrays[name], array, err_msg=name)
    assert list(temporary.glob("nexus-*")) == []


def test_a_killed_child_is_told_by_its_signal(children, temporary):
    """SIGKILL in the first epoch, as the system does when memory runs out."""

    def kill(epoch):
        children[0].kill()

    with pytest.raises(RuntimeError, match=r"ended early, by signal 9 \(the system may have run"):
        grow(make_objective(), "query", replace(SCHEDULE, epochs=100_000), **OPTIONS, on_epoch=kill)
    assert list(temporary.glob("nexus-*")) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_caller_leaves_nothing_behind(children, temporary, error):
    """Ctrl-C, or an error in the callback, ends the child and removes its folder."""

    def interrupt(epoch):
        raise error

    with pytest.raises(error):
        grow(make_objective(), "query", SCHEDULE, **OPTIONS, on_epoch=interrupt)
    assert children[0].returncode is not None
    assert list(temporary.glob("nexus-*")) == []


def test_a_killed_parent_takes_the_child_along(temporary, tmp_path, package_environment):
    """When this process dies without a word, the child ends and removes its folder."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, os.path.dirname(__file__)],
        env={**package_environment, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "epoch\n"
        assert not ended(child)
        assert len(list(temporary.glob("nexus-dendrites-*"))) == 1
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: ended(child) or _is_zombie(child))
    assert wait_until(lambda: not list(temporary.glob("nexus-dendrites-*")))


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
import subprocess
from dataclasses import replace
from nexus_integrations.training import growing
from test_perforated import OPTIONS, SCHEDULE, make_objective
popen = subprocess.Popen
def start(*args, **options):
    child = popen(*args, **options)
    print(child.pid, flush=True)
    return child
growing.subprocess.Popen = start
growing.grow(
    make_objective(), "query", replace(SCHEDULE, epochs=100_000), **OPTIONS,
    on_epoch=lambda epoch: print("epoch", flush=True),
)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads the child's environment")
def test_killed_processes_leave_no_data_and_the_next_start_removes_the_folder(
    temporary, package_environment
):
    """Parent and child die at once: no tensor of the job is on disk, and the folder goes later.

    The child's environment holds no secret of the parent's.
    """
    secrets = {"HF_TOKEN": "hf_canary", "AWS_SECRET_ACCESS_KEY": "canary", "OPENAI_API_KEY": "x"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, os.path.dirname(__file__)],
        env={**package_environment, **secrets, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    try:
        assert parent.stdout.readline() == "epoch\n"
        with open(f"/proc/{child}/environ", "rb") as file:
            passed_on = file.read()
        assert b"PATH=" in passed_on
        assert not [name for name in secrets if name.encode() in passed_on]
        # Stopped first, so that the child cannot see its parent end.
        os.kill(child, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.wait()
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()
    (left,) = temporary.glob("nexus-dendrites-*")
    objective = make_objective()
    for path in left.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for tensor in (objective.queries, objective.documents, objective.answers):
            assert tensor[3].numpy().tobytes() not in content, path
    assert left.stat().st_mode & 0o077 == 0
    grow_once()
    assert left.exists()  # too new to tell from one that has no lock yet
    os.utime(left, (0, 0))
    grow_once()
    assert list(temporary.glob("nexus-*")) == []


def test_a_folder_in_use_is_left_alone(temporary):
    """Whoever holds its lock lives."""
    folder = temporary / "nexus-dendrites-other"
    folder.mkdir()
    with FileLock(folder / "parent.lock"):
        os.utime(folder, (0, 0))
        grow_once()
        assert folder.exists()


def _is_zombie(pid: int) -> bool:
    """An orphan that ended stays listed where no init process collects it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("raise ValueError('built for another Python')", "ValueError: built for another Python"),
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("", "globals_perforatedai"),
    ],
)
def test_a_broken_perforatedai_is_an_import_error(tmp_path, monkeypatch, code, message, temporary):
    """However its import fails, the answer is the line that installs it."""
    (tmp_path / "perforatedai").mkdir()
    (tmp_path / "perforatedai" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf"{message}.*nexus-integrations\[dendrites\]"):
        grow_once()
    assert list(temporary.glob("nexus-*")) == []


def test_a_perforatedai_that_ends_the_process_is_told_by_its_status(tmp_path, monkeypatch):
    """os._exit(3) at import leaves no exception; the status and the last words are told."""
    (tmp_path / "perforatedai").mkdir()
    code = "import os; os.write(2, b'so long\\n'); os._exit(3)"
    (tmp_path / "perforatedai" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"with status 3; its last words: so long"):
        grow_once()
