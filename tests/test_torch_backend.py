"""PyTorch on a processor: bfloat16, its attention, and batches side by side."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from nexus_integrations import DendriticEncoder
from nexus_integrations.backends import bfloat16
from nexus_integrations.backends import torch as torch_backend
from nexus_integrations.backends.torch import TorchBackbone

TEXTS = ["who signs the form", "two\nlines", "", "emoji 😀", "room 12"]


def attend(query, key, value, mask=None, **settings):
    """Attention in bfloat16, (n, heads, length, width) in float32 in and out."""
    module = SimpleNamespace(is_causal=False)
    half = [part.bfloat16() for part in (query, key, value)]
    return bfloat16._attention(module, *half, mask, **settings)[0].transpose(1, 2).float()


def test_attention_in_bfloat16_by_hand():
    """Two heads of width 1, scaled by ln 2: scores 1 and 3 weigh 2 and 8, of values 5 and 10."""
    query = torch.ones(1, 2, 2, 1)
    key = torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1).expand(1, 2, 2, 1)
    value = torch.tensor([5.0, 10.0]).reshape(1, 1, 2, 1).expand(1, 2, 2, 1)
    found = attend(query, key, value, scaling=math.log(2))
    assert found.flatten().tolist() == pytest.approx([9] * 4, rel=2**-7)
    # The second position is padding: the first alone counts.
    found = attend(query, key, value, torch.tensor([[1, 0]]), scaling=math.log(2))
    assert found.flatten().tolist() == [5] * 4


@pytest.mark.parametrize("size", [1, 200, -200])
@pytest.mark.parametrize("mask", [None, [[1] * 7, [1] * 3 + [0] * 4]])
def test_attention_in_bfloat16_is_that_of_any_scores(size, mask):
    """Scores whose powers are no number, or nothing, are taken the usual way."""
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    query, key = query.abs() * size, key.abs()  # all scores of one sign
    mask = None if mask is None else torch.tensor(mask)
    half = [part.bfloat16().float() for part in (query, key, value)]
    seen = None if mask is None else mask[:, None, None].bool()
    expected = torch.nn.functional.scaled_dot_product_attention(*half, attn_mask=seen)
    found = attend(query, key, value, mask)
    if abs(size) == 1:
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    else:  # one score dwarfs the others, or two by chance are near: no rounding decides
        scores = (half[0] @ half[1].transpose(2, 3)) / math.sqrt(8)
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        best = scores.topk(2).values
        clear = best[..., 0] - best[..., 1] > 0.02 * best[..., 0].abs()
        assert clear.float().mean() > 0.5
        torch.testing.assert_close(found[clear], expected[clear], atol=0.03, rtol=0)


def test_what_sees_less_than_all_attends_the_usual_way():
    """A causal module, and a mask of pairs: the first position sees itself alone."""
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    half = [part.bfloat16() for part in (query, key, value)]
    causal = bfloat16._attention(SimpleNamespace(is_causal=True), *half, None)[0]
    pairs = attend(query, key, value, torch.ones(5, 5).tril().bool()[None, None])
    torch.testing.assert_close(causal.transpose(1, 2).float(), pairs, atol=0.02, rtol=0)
    torch.testing.assert_close(pairs[:, :, 0], half[2][:, :, 0].float())


def fail(*_):
    raise RuntimeError("mat1 and mat2 must have the same dtype")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("_is_fast_here", lambda model: False),
        ("_attention", fail),
        ("_attention", lambda module, query, *_, **__: (1000 * query.transpose(1, 2), None)),
    ],
)
def test_layers_stay_where_packed_ones_do_not_serve(tiny_model, monkeypatch, name, instead):
    """A processor without bfloat16, a model that fails and one that gives other vectors."""
    model = DendriticEncoder.load(tiny_model, backend="torch", precision="bfloat16").backbone
    expected = model.encode(TEXTS, "document")[0]
    monkeypatch.setattr(bfloat16, name, instead)
    usual = TorchBackbone(model.model, precision="bfloat16")
    found = usual.encode(TEXTS, "document")[0]
    monkeypatch.undo()
    bfloat16._set_attention(torch.nn.Identity())  # transformers keeps the last one of a name
    assert (found * expected).sum(axis=1).min() > 0.9999
    layers = [m for m in usual._vectors.modules() if isinstance(m, torch.nn.Linear)]
    assert layers
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batches_run_side_by_side_on_a_thread_each(tiny_model, monkeypatch, precision):
    """Two at a time, in order; the process's number of threads is what it was, for all."""
    monkeypatch.setattr(torch_backend, "_BATCH_TOKENS", {True: 1})  # a batch of each text
    backbone = TorchBackbone.load(tiny_model, precision=precision, num_threads=2)
    texts = [f"text {n}" for n in range(40)]
    expected = np.concatenate([backbone.encode([text], "document")[0] for text in texts])
    before = torch.get_num_threads()
    compute, together, threads = backbone._compute, threading.Barrier(2, timeout=30), []

    def watched(ids, mask):
        together.wait()  # breaks where a batch has no other beside it
        threads.append((threading.get_ident(), torch.get_num_threads()))
        return compute(ids, mask)

    monkeypatch.setattr(backbone, "_compute", watched)
    found = backbone.encode(texts, "document")[0]
    np.testing.assert_allclose(found, expected, atol=1e-6 if precision == "float32" else 0.02)
    assert len({thread for thread, _ in threads}) == 2
    assert {number for _, number in threads} == {1}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == before


def test_threads_are_restored_whoever_runs_at_the_same_time(tiny_model):
    """Two encoders that set the process's number, used from four threads at once."""
    encoders = [DendriticEncoder.load(tiny_model, backend="torch", num_threads=n) for n in (1, 3)]
    before = torch.get_num_threads()
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda n: encoders[n % 2].encode_queries([f"text {n}"]), range(200)))
    assert torch.get_num_threads() == before
