"""Models of other architectures than BERT: every backend gives their own vectors."""

import string

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from nexus_integrations.backends import load_backbone
from nexus_integrations.backends.folder import GRAPH

MAX_LENGTH = 64
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_LENGTH + 2,
    "pad_token_id": 0,
}
# What the usual encoder has not: layers that see a window, wider than a short text, and positions
# by rotation; attention of its own, with relative positions; fewer keys than queries, of which
# those that follow are not seen, and the last one's vector.
KINDS = {
    "windows": ("ModernBertConfig", {"local_attention": 40, "global_attn_every_n_layers": 2}),
    "own attention": ("MPNetConfig", {}),
    "causal": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of 1 to 90 pieces, the longest of which is cut off."""
    rng = np.random.default_rng(0)
    letters = list(string.ascii_lowercase)
    return ["".join(rng.choice(letters, n)) for n in (1, 5, 20, 40, 62, 30, 60, 90, 3, 10)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tiny_model, tmp_path_factory, monkeypatch_module, texts):
    """A folder of a model of this kind, and sentence-transformers' vectors of the texts."""
    name, settings = KINDS[request.param]
    monkeypatch_module.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("kind")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    marks = dict.fromkeys(("cls_token_id", "bos_token_id"), tokenizer.cls_token_id)
    marks |= dict.fromkeys(("sep_token_id", "eos_token_id"), tokenizer.sep_token_id)
    config = getattr(transformers, name)(vocab_size=len(tokenizer), **SIZE, **marks, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for weight in model.parameters():
            if weight.ndim == 2:  # so large that attention is no mean
                torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder / "transformer")
    tokenizer.save_pretrained(folder / "transformer")
    transformer = Transformer(str(folder / "transformer"), max_seq_length=MAX_LENGTH)
    pooling = Pooling(32, pooling_mode="lasttoken" if request.param == "causal" else "mean")
    whole = SentenceTransformer(modules=[transformer, pooling])
    whole.save(str(folder / "model"), create_model_card=False)
    vectors = whole.encode(texts, normalize_embeddings=True, batch_size=1)
    return request.param, folder / "model", vectors


@pytest.fixture(scope="module")
def monkeypatch_module():
    """A `monkeypatch` for a module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize(
    ("backend", "precision", "least"),
    [("torch", "float32", 1.0), ("onnx", "float32", 1.0), ("torch", "bfloat16", 0.999)],
)
def test_vectors_are_the_model_s_own(kind, texts, backend, precision, least):
    """Together and alone, whatever their length; in bfloat16 at its usual loss."""
    _, folder, expected = kind
    backbone = load_backbone(folder, backend=backend, precision=precision)
    together = backbone.encode(texts, "document")[0]
    alone = np.concatenate([backbone.encode([text], "document")[0] for text in texts])
    for found in (together, alone):
        assert (found * expected).sum(axis=1).min() > least - 1e-6
        if least == 1:
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_windows_take_the_one_operator_of_attention(kind):
    """The one layer with a window adds it to its scores; other attention is written out."""
    import onnx

    name, folder, _ = kind
    runtime = load_backbone(folder, backend="onnx").runtime
    graph = onnx.load(str(runtime / GRAPH), load_external_data=False).graph
    nodes = list(graph.node)
    for node in graph.node:
        nodes += [inner for part in node.attribute for inner in part.g.node]
    biased = [node for node in nodes if node.op_type == "MultiHeadAttention"]
    assert sum(len(node.input) == 6 for node in biased) == (1 if name == "windows" else 0)
