"""int8, bfloat16 and what "auto" makes of them, on a model that is small and quickly quantised."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from safetensors.numpy import load_file, save_file

from nexus_integrations import DendriticEncoder
from nexus_integrations.backends import load_backbone
from nexus_integrations.backends.export import export_backbone
from nexus_integrations.backends.fastest import sample_texts
from nexus_integrations.backends.folder import PROBE, RUNTIME_MANIFEST
from nexus_integrations.backends.int8 import _compensated, _dwarfing, _quantise, _steps
from nexus_integrations.backends.int8_graph import linear_layers, with_integers
from nexus_integrations.backends.session import open_session
from nexus_integrations.encoder.head import DendriticHead
from nexus_integrations.files import sha256_of

pytestmark = pytest.mark.filterwarnings("ignore:.*of the texts:UserWarning")

TEXTS = ["who signs the form", "two\nlines", "", "x" * 200, "emoji 😀", "room 12"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own, where the graphs of the tiny model are made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quantised(tiny_model, cache):
    """The tiny model in int8, its graph in the cache."""
    return DendriticEncoder.load(tiny_model, precision="int8")


def cosines(one, other):
    return (one * other).sum(axis=1)


def test_int8_loses_little_and_tells_itself_apart(tiny_model, quantised):
    """Near float32, not equal to it, and under a fingerprint of its own."""
    exact = DendriticEncoder.load(tiny_model)
    documents, queries = sample_texts()
    found = quantised.encode_documents(documents[:40])
    expected = exact.encode_documents(documents[:40])
    assert cosines(found, expected).mean() >= 0.998
    assert np.abs(found - expected).max() > 1e-6
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert (
        cosines(quantised.encode_queries(queries[:9]), exact.encode_queries(queries[:9])).mean()
        > 0.998
    )
    assert quantised.backbone.precision == "int8"
    assert quantised.backbone.backend == "onnx"
    assert quantised.fingerprint != exact.fingerprint
    assert quantised.backbone.float32_digest == exact.backbone.float32_digest


def test_int8_vectors_do_not_depend_on_their_neighbours(quantised):
    """Ranges are fixed, not taken from the batch."""
    together = quantised.encode_documents(TEXTS)
    alone = np.concatenate([quantised.encode_documents([text]) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-6)


def test_an_int8_encoder_is_saved_in_float32_and_exported_in_int8(quantised, tiny_model, tmp_path):
    """The saved folder is the model; the exported one runs in int8 with nothing said."""
    head = DendriticHead.untrained(16, 0).arrays
    rng = np.random.default_rng(0)
    head = DendriticHead(**{name: rng.normal(size=array.shape) for name, array in head.items()})
    tuned = quantised.with_heads(query_head=head, document_head=None)
    tuned.save(tmp_path / "saved")
    exact = DendriticEncoder.load(tmp_path / "saved")
    again = DendriticEncoder.load(tmp_path / "saved", precision="int8")
    assert exact.backbone.precision == "float32"
    assert again.fingerprint == tuned.fingerprint != exact.fingerprint
    tuned.export(tmp_path / "exported")
    exported = DendriticEncoder.load(tmp_path / "exported")
    assert exported.backbone.precision == "int8"
    assert exported.fingerprint != tuned.fingerprint  # nobody can tell what it was made from
    assert exported.encode_queries(TEXTS) == pytest.approx(tuned.encode_queries(TEXTS), abs=1e-6)
    with pytest.raises(ValueError, match=r"was exported in int8 and does not run in float32"):
        DendriticEncoder.load(tmp_path / "exported", precision="float32")


def test_a_processor_that_computes_int8_otherwise_is_noticed(quantised, tmp_path):
    """As one without dot products of bytes would: the probe's vectors are others there."""
    quantised.export(tmp_path / "exported")
    folder = tmp_path / "exported" / "backbone"
    probe = load_file(folder / PROBE)
    probe["vectors"] = probe["vectors"][:, ::-1].copy()
    save_file(probe, folder / PROBE)
    manifest = json.loads((folder / RUNTIME_MANIFEST).read_text())
    manifest["sha256"][PROBE] = sha256_of(folder / PROBE)
    (folder / RUNTIME_MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"this CPU does not compute .* in int8 as the one"):
        load_backbone(folder)


def test_bfloat16_loses_less_and_stays_where_it_can_run(tiny_model, tmp_path):
    """It runs by PyTorch; ONNX Runtime has no kernels for it, and the message says so."""
    exact = DendriticEncoder.load(tiny_model)
    half = DendriticEncoder.load(tiny_model, precision="bfloat16")
    assert (half.backbone.backend, half.backbone.precision) == ("torch", "bfloat16")
    found, expected = half.encode_documents(TEXTS), exact.encode_documents(TEXTS)
    assert cosines(found, expected).min() > 0.9999
    assert half.fingerprint != exact.fingerprint
    with pytest.raises(ValueError, match="no CPU kernels for bfloat16"):
        DendriticEncoder.load(tiny_model, backend="onnx", precision="bfloat16")
    with pytest.raises(ValueError, match="no CPU kernels for bfloat16"):
        half.export(tmp_path / "exported")


@pytest.mark.parametrize(
    ("backend", "possible"),
    [
        ("auto", {"float32", "bfloat16", "int8"}),
        ("onnx", {"float32", "int8"}),
        ("torch", {"float32", "bfloat16"}),
    ],
)
def test_auto_is_one_of_what_the_backend_runs(tiny_model, cache, backend, possible):
    """Measured once: the second time is the same encoder, with the same fingerprint."""
    first = DendriticEncoder.load(tiny_model, backend=backend, precision="auto")
    assert first.backbone.precision in possible
    again = DendriticEncoder.load(tiny_model, backend=backend, precision="auto")
    assert again.fingerprint == first.fingerprint


def test_auto_exports_what_runs_without_torch(tiny_model, tmp_path):
    """float32 or int8, whichever was faster here."""
    encoder = DendriticEncoder.load(tiny_model)
    encoder.export(tmp_path / "exported", precision="auto")
    exported = DendriticEncoder.load(tmp_path / "exported", precision="auto")
    assert exported.backbone.precision in {"float32", "int8"}
    assert cosines(exported.encode_documents(TEXTS), encoder.encode_documents(TEXTS)).mean() > 0.99


def test_a_model_that_would_lose_too_much_is_not_quantised(tiny_model, tmp_path, monkeypatch):
    """With nothing but perfection allowed every layer falls back, and int8 is refused."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    monkeypatch.setattr("nexus_integrations.backends.int8.NEGLIGIBLE", 1.1)
    monkeypatch.setattr("nexus_integrations.backends.int8._AIM", 1.1)
    with pytest.raises(ValueError, match=r"loses too much in int8"):
        export_backbone(load_backbone(folder, backend="torch"), tmp_path / "exported", "int8")


def test_rounding_is_made_good_by_the_rows_to_come():
    """By hand: inputs that are always equal, weights .4 and .4 at steps of 1, sum .8.

    Rounded apart they give 0. The first row is rounded to 0, its error goes to the second, which
    becomes .4 + .4 = .8 and is rounded to 1: the sum is off by .2, not by .8.
    """
    rows = np.ones((8, 2), dtype=np.float32)
    weight = np.array([[0.4], [0.4]], dtype=np.float32)
    whole = _compensated(weight, rows, np.ones(1, dtype=np.float32))
    assert whole.ravel().tolist() == [0, 1]


def test_a_step_is_the_largest_weight_of_its_column_over_127():
    """Per output: the columns do not share a step."""
    weight = np.array([[1.27, -0.1], [-0.5, 2.54]], dtype=np.float32)
    assert _steps(weight) == pytest.approx([0.01, 0.02])


def test_channels_dwarf_the_others_by_activation_and_weight():
    """Channels 2 and 7 alone stretch the range of 18: 40 · 2 and 1 · 90, the others 1 · 2.

    Sixteen are set apart where any is; a channel whose weights are small does not count.
    """
    rows, weight = np.ones((4, 18), dtype=np.float32), np.full((18, 3), 2.0, dtype=np.float32)
    rows[0, 2], weight[7, 1] = -40, 90
    rows[:, 4], weight[4] = 1000, 1e-4
    found = _dwarfing(rows, weight)
    assert len(found) == 16
    assert {2, 7} <= set(found.tolist())
    assert 4 not in found
    assert _dwarfing(np.ones((4, 18), dtype=np.float32), np.ones((18, 3))).tolist() == []


def test_a_channel_that_dwarfs_the_others_costs_them_nothing(tmp_path):
    """Values of 1 beside one of 1,000, in steps of 1,000 / 255, would all be 0: they are not.

    Nor do sums of two products of bytes overflow where the CPU adds them in 16 bits.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (256, 32)).astype(np.float32)
    rows[:, 5] = 1000
    weight = rng.standard_normal((32, 24), dtype=np.float32)
    bias = rng.standard_normal(24, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    layers = linear_layers(model)
    rewritten = with_integers(model, layers, {0: _quantise(layers[0], rows)})
    onnx.checker.check_model(rewritten)
    onnx.save(rewritten, str(tmp_path / "layer.onnx"))
    (found,) = open_session(tmp_path / "layer.onnx").run(None, {"x": rows})
    exact = rows @ weight + bias
    error = np.abs(found - exact).max()
    assert "MatMulIntegerToFloat" in {node.op_type for node in rewritten.graph.node}
    assert error < 0.2  # of values that vary by ±10
