"""Training the backbone itself, on a tiny transformer."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.sts.runs import similarity_score
from nexus_integrations.data import SimilarityDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.finetune import finetune
from nexus_integrations.training.tower import Tokens, Tower, like_length

CONFIG = FinetuneConfig(
    backbone="trainable",
    dendrites=0,
    epochs=4,
    batch_size=8,
    loss="cosine",
    learning_rate=1e-3,
    backbone_learning_rate=1e-2,
    dropout=True,
)


def make_pairs(n=48, seed=0) -> SimilarityDataset:
    """Words of one letter each: a…d are of one kind, e…h of the other, equal kinds are similar."""
    rng = np.random.default_rng(seed)
    letters, sizes = rng.integers(0, 8, size=2 * n), rng.integers(1, 9, size=2 * n)
    words = [chr(97 + k) * int(size) for k, size in zip(letters, sizes, strict=True)]
    first, second = words[:n], words[n:]
    scores = (letters[:n] // 4 == letters[n:] // 4).astype(np.float32)
    return SimilarityDataset(sentences1=first, sentences2=second, scores=scores)


TRAIN, DEV = make_pairs(), make_pairs(24, seed=1)


@pytest.fixture
def tiny(tiny_model) -> DendriticEncoder:
    """The tiny transformer in PyTorch, which alone can train it."""
    return DendriticEncoder.load(tiny_model, backend="torch")


def weights(encoder: DendriticEncoder) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in encoder.backbone.model.state_dict().items()}


def test_tokens_are_padded_and_embedded_as_the_model_embeds_texts(tiny):
    """Cut once and padded by us, texts of several lengths give the encoder's own vectors."""
    texts = ["a", "bcd efg", "hello there 7", "a"]
    tower = Tower.copy_of(tiny.backbone)
    tokens = tower.tokens(texts, "document")
    assert tokens.starts[0] == 0
    assert len(tokens.lengths) == 4
    np.testing.assert_allclose(tower.embed(tokens), tiny.encode_documents(texts), atol=1e-5)
    joined = Tokens.joined(*tokens.halves())
    assert torch.equal(joined.ids, tokens.ids)
    assert torch.equal(joined.starts, tokens.starts)


def test_batches_of_like_length_cover_everything_once():
    """Of 1,000 items in batches of 10 each is drawn once, and padding is little."""
    lengths = torch.randint(1, 50, (1000,), generator=torch.Generator().manual_seed(1))
    found = [list(like_length(lengths, 10, torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    assert sorted(torch.cat(found[0]).tolist()) == list(range(1000))
    assert [b.tolist() for b in found[0]] == [b.tolist() for b in found[1]]
    assert [b.tolist() for b in found[0]] != [b.tolist() for b in found[2]]
    assert {len(batch) for batch in found[0]} == {10}
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in found[0])
    assert padded < 1.2 * int(lengths.sum())


def test_the_backbone_is_trained_and_the_one_given_is_not(tiny):
    """Dev's ρ rises, other weights come back, and the encoder given is what it was."""
    before = weights(tiny)
    result = finetune(tiny, TRAIN, DEV, CONFIG)
    assert result.score > result.baseline_score + 0.05
    after = weights(result.encoder)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tiny).items())
    assert result.encoder.backbone.digest != tiny.backbone.digest
    # The score reported is that of the encoder returned.
    assert similarity_score(result.encoder, DEV) == pytest.approx(result.score, abs=1e-6)
    assert not any(p.requires_grad for p in result.encoder.backbone.model.parameters())


def test_a_trained_backbone_is_saved_and_loaded(tiny, tmp_path):
    """The folder gives the vectors that the encoder gives."""
    trained = finetune(tiny, TRAIN, DEV, CONFIG).encoder
    trained.save(tmp_path / "tuned")
    loaded = DendriticEncoder.load(tmp_path / "tuned", backend="torch")
    np.testing.assert_array_equal(
        loaded.encode_documents(["abc"]), trained.encode_documents(["abc"])
    )


def test_nothing_is_dropped_unless_asked_for(tiny):
    """The same texts have the same vectors twice while the tower is trained, or not."""
    for dropout in (False, True):
        tower = Tower.copy_of(tiny.backbone, dropout=dropout).train()
        texts = tower.tokens(["abc", "de f"], "document")
        first, second = (tower(texts, torch.arange(2)) for _ in range(2))
        assert torch.equal(first, second) == (not dropout)
        assert first.requires_grad


def test_training_leaves_the_process_its_randomness(tiny):
    """Dropout draws from a seeded state; equal seeds give equal weights, others do not."""
    state = torch.get_rng_state()
    prints = [
        finetune(tiny, TRAIN, DEV, replace(CONFIG, seed=seed)).encoder.fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.dendrites
@pytest.mark.usefixtures("perforatedai")
def test_dendrites_grow_on_a_trained_backbone(tiny):
    """After the warm-up a dendrite is added, and the best epoch of all comes back."""
    config = replace(CONFIG, dendrites=1, warmup_epochs=2, epochs=3)
    result = finetune(tiny, TRAIN, DEV, config)
    assert [epoch.dendrites for epoch in result.history] == [0, 0, 1, 1, 1]
    best = max(result.history, key=lambda epoch: epoch.score)
    assert result.score == best.score > result.baseline_score
    assert result.encoder.query_head.dendrites == best.dendrites
    assert result.history[-1].parameters > result.history[0].parameters
    # Up to the dendrite it is training without one, dropout and all.
    linear = finetune(tiny, TRAIN, DEV, replace(CONFIG, epochs=2))
    losses = [epoch.loss for epoch in result.history[:2]]
    assert losses == pytest.approx([epoch.loss for epoch in linear.history])


def test_refit_trains_on_both_from_the_start(tiny):
    """Refitting begins with the untrained backbone: only the data tells it from another run."""
    refit = finetune(tiny, TRAIN, DEV, replace(CONFIG, refit=True)).encoder
    assert refit.fingerprint not in (
        tiny.fingerprint,
        finetune(tiny, TRAIN, DEV, CONFIG).encoder.fingerprint,
    )


@pytest.mark.parametrize("refit", [False, True])
def test_runs_of_several_seeds_are_averaged(tiny, refit):
    """Each run starts from the backbone given, and all weights are the mean over the seeds."""
    config = replace(CONFIG, refit=refit)
    runs = [finetune(tiny, TRAIN, DEV, replace(config, seed=seed)).encoder for seed in (0, 1)]
    mean = finetune(tiny, TRAIN, DEV, replace(config, average=2))
    first, second = map(weights, runs)
    for name, tensor in weights(mean.encoder).items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        mean.encoder.query_head.weight,
        (runs[0].query_head.weight + runs[1].query_head.weight) / 2,
        atol=1e-6,
    )
    if not refit:
        assert mean.score == pytest.approx(similarity_score(mean.encoder, DEV), abs=1e-6)


# Checkpoints.


@pytest.mark.parametrize(
    "dendrites", [0, pytest.param(1, marks=pytest.mark.dendrites)], ids=["linear", "dendrites"]
)
def test_a_killed_run_goes_on_to_the_same_weights(
    tiny, tiny_model, tmp_path, package_environment, request, dendrites
):
    """SIGKILL in mid-training; the second call trains the rest and ends where one run ends."""
    if dendrites:
        request.getfixturevalue("perforatedai")
    config = replace(CONFIG, dendrites=dendrites, epochs=4)
    whole = finetune(tiny, TRAIN, DEV, config)
    program = f"""
import sys, threading
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_tower import *
encoder = DendriticEncoder.load({str(tiny_model)!r}, backend="torch")
config = replace(CONFIG, dendrites={dendrites}, epochs=4)
finetune(encoder, TRAIN, DEV, config, checkpoint_dir={str(tmp_path / "run")!r})
"""
    child = subprocess.Popen([sys.executable, "-c", program], env=package_environment)
    metrics = tmp_path / "run" / "metrics.json"
    wanted = 6 if dendrites else 2
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and child.poll() is None:
        if metrics.is_file() and len(json.loads(metrics.read_text())["epochs"]) >= wanted:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    child.wait()
    done = json.loads(metrics.read_text())["epochs"]
    resumed = finetune(tiny, TRAIN, DEV, config, checkpoint_dir=tmp_path / "run")
    assert [epoch.score for epoch in resumed.history[: len(done)]] == [e["score"] for e in done]
    assert [epoch.score for epoch in resumed.history] == [epoch.score for epoch in whole.history]
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint
    # A run that is done is read, not trained again.
    again = finetune(tiny, TRAIN, DEV, config, checkpoint_dir=tmp_path / "run")
    assert again.encoder.fingerprint == whole.encoder.fingerprint
    assert [epoch.seconds for epoch in again.history] == [e.seconds for e in resumed.history]


def test_an_average_goes_on_with_the_run_it_was_at(tiny, tmp_path):
    """Each seed has a folder: the first is read again, the second trained from where it was."""
    config = replace(CONFIG, average=2)
    whole = finetune(tiny, TRAIN, DEV, config, checkpoint_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    for path in (tmp_path / "seed-1").iterdir():
        path.unlink()
    again = finetune(tiny, TRAIN, DEV, config, checkpoint_dir=tmp_path)
    assert again.encoder.fingerprint == whole.encoder.fingerprint
    seconds = [[epoch.seconds for epoch in result.history] for result in (whole, again)]
    assert seconds[0][:4] == seconds[1][:4]
    assert seconds[0][4:] != seconds[1][4:]


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path):
    """Other settings, other data, another model: going on would mix two runs."""
    finetune(tiny, TRAIN, DEV, replace(CONFIG, epochs=1), checkpoint_dir=tmp_path)
    for train, config in ((TRAIN, CONFIG), (make_pairs(seed=5), replace(CONFIG, epochs=1))):
        with pytest.raises(ValueError, match=r"checkpoint of another run: the model, the data or"):
            finetune(tiny, train, DEV, config, checkpoint_dir=tmp_path)


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    """A file cut short is an error that says what to do."""
    finetune(tiny, TRAIN, DEV, replace(CONFIG, epochs=1), checkpoint_dir=tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.safetensors cannot be read .*: remove its folder"):
        finetune(tiny, TRAIN, DEV, replace(CONFIG, epochs=1), checkpoint_dir=tmp_path)


# What cannot be trained.


def test_only_a_backbone_in_pytorch_is_trained(table_encoder):
    """Looked-up vectors have no weights."""
    encoder = table_encoder({"a": (1, 0)})
    with pytest.raises(ValueError, match=r"TableBackbone cannot be trained: .*backend='torch'"):
        finetune(encoder, TRAIN, DEV, CONFIG)


@pytest.mark.parametrize("part", ["train", "dev"])
def test_constant_scores_are_refused(tiny, part):
    """Spearman's ρ of equal scores is undefined."""
    same = replace(TRAIN, scores=np.full(len(TRAIN), 0.5, dtype=np.float32))
    train, dev = (same, DEV) if part == "train" else (TRAIN, same)
    with pytest.raises(ValueError, match=rf"all 48 scores of the {part} pairs are 0\.5"):
        finetune(tiny, train, dev, FinetuneConfig(dendrites=0, epochs=1))
