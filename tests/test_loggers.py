"""Logging epochs to TensorBoard and, offline, to Weights & Biases."""

import subprocess
import sys

import pytest

from nexus_integrations.training.loggers import tensorboard_logger, wandb_logger
from nexus_integrations.training.recipe import FinetuneConfig, finetune
from nexus_integrations.training.record import Epoch

EPOCHS = [
    Epoch(epoch=n, dendrites=n // 2, loss=1 / n, score=0.1 * n, parameters=9, seconds=float(n))
    for n in (1, 2, 3)
]


def test_tensorboard_reads_what_was_logged(tmp_path):
    """Three epochs are three points of each figure."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard_logger(tmp_path) as on_epoch:
        for epoch in EPOCHS:
            on_epoch(epoch)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {
        "loss",
        "dev_score",
        "dendrites",
        "parameters",
        "seconds",
    }
    points = [(event.step, event.value) for event in read.Scalars("dev_score")]
    assert points == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2)), (3, pytest.approx(0.3))]


def test_wandb_offline_writes_a_run_and_uses_no_network(tmp_path, package_environment):
    """A fresh interpreter without a network leaves a run with the figures, and nothing else."""
    pytest.importorskip("wandb")
    program = """
import socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost"):
        print("NETWORK", address)
        raise OSError("no network")
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refuse
from nexus_integrations.training.record import Epoch
from nexus_integrations.training.loggers import wandb_logger
with wandb_logger("clinic", folder=sys.argv[1], settings={"epochs": 3}) as on_epoch:
    for n in (1, 2, 3):
        on_epoch(Epoch(epoch=n, dendrites=0, loss=1.0, score=.25, parameters=9, seconds=1.0))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**package_environment, "WANDB_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stdout
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = run.read_bytes()
    assert b"dev_score" in content
    assert b"sys.argv" not in content


@pytest.mark.parametrize(
    ("make", "module", "name"),
    [
        (lambda: tensorboard_logger("x"), "tensorboard", "tensorboard"),
        (lambda: wandb_logger("x"), "wandb", "wandb"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, make, module, name):
    """The error is the line that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ImportError, match=rf'{module} is missing: .*integrations\[{name}\]"'),
        make(),
    ):
        pass


def test_finetune_tells_every_epoch(table_encoder):
    """What the loggers get is the history."""
    from nexus_integrations.data import RetrievalDataset

    encoder = table_encoder({"a": (1, 0), "b": (0, 1)})
    data = RetrievalDataset(
        queries={"q": "a", "r": "b"},
        corpus={"d": "b", "e": "a"},
        relevant_docs={"q": ["d"], "r": ["e"]},
    )
    told: list[Epoch] = []
    config = FinetuneConfig(dendrites=0, epochs=2)
    result = finetune(encoder, data, data, config, on_epoch=told.append)
    assert told == result.history
