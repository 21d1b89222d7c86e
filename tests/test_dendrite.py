"""The dendritic head: its formula, its file."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from nexus_integrations.encoder.head import DendriticHead


def sigma(x: float) -> float:
    return 1 / (1 + exp(-x))


def make_head() -> DendriticHead:
    """Two dimensions, two dendrites, every weight its own."""
    return DendriticHead(
        weight=np.array([[0.1, 0.2], [0.0, -0.1]]),
        dendrite_weight=np.array([[[1.0, 0.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
        between=np.array([np.zeros((2, 2)), [[0.5, -0.25], [0.0, 0.0]]]),
        top=np.array([[0.2, 0.3], [-0.1, 0.4]]),
    )


# v = (.6, .8): W v = (.06 + .16, −.08), D₁ v = (.6, 1.2 + .8), D₂ v = (.8, .6).
O1 = (sigma(0.6), sigma(2.0))
O2 = (sigma(0.8 + 0.5 * O1[0]), sigma(0.6 - 0.25 * O1[1]))
F = (0.22 + 0.2 * O1[0] - 0.1 * O2[0], -0.08 + 0.3 * O1[1] + 0.4 * O2[1])


def test_residual_is_the_formula():
    """f(v) = W v + Σ tᵢ ⊙ σ(Dᵢ v + Σ_{j<i} c_ij ⊙ oⱼ), written out for two dendrites."""
    residual = make_head().residual(np.array([[0.6, 0.8]], dtype=np.float32))
    assert residual[0] == pytest.approx(F, abs=1e-6)


def test_transform_adds_and_normalises():
    """h(v) = (v + f(v)) / ‖v + f(v)‖, as float32."""
    x, y = 0.6 + F[0], 0.8 + F[1]
    length = (x * x + y * y) ** 0.5
    mapped = make_head().transform(np.array([[0.6, 0.8]], dtype=np.float32))
    assert mapped.dtype == np.float32
    assert mapped[0] == pytest.approx([x / length, y / length], abs=1e-6)


def test_a_dendrite_hears_only_earlier_ones():
    """Weights between a dendrite and itself or a later one have no part in the formula."""
    between = make_head().between.copy()
    between[0] = between[1, 1] = 7.0
    head = replace(make_head(), between=between)
    vector = np.array([[0.6, 0.8]], dtype=np.float32)
    assert head.residual(vector)[0] == pytest.approx(F, abs=1e-6)


def test_transform_equals_torch():
    """500 vectors through 3 dendrites of 64 dimensions, as PyTorch computes them, to 1e-6."""
    rng = np.random.default_rng(0)
    shapes = {n: a.shape for n, a in DendriticHead.untrained(64, 3).arrays.items()}
    head = DendriticHead(**{name: rng.normal(size=shape) for name, shape in shapes.items()})
    vectors = rng.normal(size=(500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = {name: torch.from_numpy(array.copy()) for name, array in head.arrays.items()}
    v = torch.from_numpy(vectors)
    f, outputs = v @ weights["weight"].T, []
    for number in range(3):
        inputs = v @ weights["dendrite_weight"][number].T
        for earlier, output in enumerate(outputs):
            inputs = inputs + weights["between"][number, earlier] * output
        outputs.append(torch.sigmoid(inputs))
        f = f + weights["top"][number] * outputs[-1]
    expected = functional.normalize(v + f, dim=-1).numpy()
    np.testing.assert_allclose(head.transform(vectors), expected, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_saturated_dendrite_is_0_or_1():
    """σ(±1000) overflows nowhere: h = normalise((1, 0) + (1, 0)), and (-1, 0) + (0, 0)."""
    head = replace(
        DendriticHead.untrained(2, 1),
        dendrite_weight=np.array([[[1000.0, 0.0], [0.0, 0.0]]]),
        top=np.array([[1.0, 0.0]]),
    )
    vectors = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert head.residual(vectors).tolist() == [[1, 0], [0, 0]]
    assert head.transform(vectors).tolist() == [[1, 0], [-1, 0]]


def test_a_vector_that_is_taken_back_whole_is_0():
    """W = -I leaves nothing of v to normalise: a row of zeros, and no NaN."""
    head = replace(DendriticHead.untrained(2), weight=-np.eye(2))
    assert head.transform(np.array([[1, 0]], dtype=np.float32)).tolist() == [[0, 0]]


def test_linear_head_by_hand():
    """W = [[0, 1], [0, 0]] maps (0, 1) to (1, 1)/√2 and leaves (1, 0)."""
    head = replace(DendriticHead.untrained(2), weight=np.array([[0.0, 1.0], [0.0, 0.0]]))
    mapped = head.transform(np.array([[0, 1], [1, 0]], dtype=np.float32))
    np.testing.assert_allclose(mapped, [[0.5**0.5, 0.5**0.5], [1, 0]], atol=1e-7)


@pytest.mark.parametrize("dendrites", [0, 2])
def test_untrained_head_changes_no_bit(dendrites):
    """With f = 0 the vectors come back bit for bit, even those that are not quite unit."""
    vectors = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    head = DendriticHead.untrained(7, dendrites)
    assert head.is_identity
    mapped = head.transform(vectors)
    assert mapped.tobytes() == vectors.tobytes()
    assert not np.shares_memory(mapped, vectors)


def test_a_head_with_a_dendrite_alone_is_trained():
    """W = 0 but t ≠ 0 changes vectors, so such a head is no identity."""
    head = replace(DendriticHead.untrained(2, 1), top=np.array([[1.0, 0.0]]))
    assert not head.is_identity
    # σ(0) = ½ is added to the first entry: (0.5, 1)/‖·‖.
    mapped = head.transform(np.array([[0, 1]], dtype=np.float32))
    np.testing.assert_allclose(mapped, [[0.5 / 1.25**0.5, 1 / 1.25**0.5]], atol=1e-6)


def test_rows_do_not_depend_on_each_other(monkeypatch):
    """Mapped in blocks of three rows, ten rows come out as all at once, and the input stays."""
    vectors = np.random.default_rng(1).normal(size=(10, 2)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = vectors.copy()
    whole = make_head().transform(vectors)
    monkeypatch.setattr("nexus_integrations.encoder.head._ROWS", 3)
    np.testing.assert_allclose(make_head().transform(vectors), whole, atol=1e-7)
    assert (vectors == before).all()


def test_other_dimension_is_refused():
    """A head of dimension 2 does not map vectors of dimension 3, trained or not."""
    for head in (make_head(), DendriticHead.untrained(2)):
        with pytest.raises(ValueError, match="dimension 2, got 3"):
            head.transform(np.ones((1, 3), dtype=np.float32))


@pytest.mark.parametrize(("dimension", "dendrites"), [(0, 0), (3, -1)])
def test_impossible_heads_are_refused(dimension, dendrites):
    """No head has no dimension, or fewer than no dendrites."""
    with pytest.raises(ValueError, match=f"dimension {dimension} with {dendrites} dendrites"):
        DendriticHead.untrained(dimension, dendrites)


def test_a_head_cannot_be_written_to():
    """Neither its names nor its arrays; what it was made of is copied."""
    weight = np.eye(2, dtype=np.float32)
    head = replace(DendriticHead.untrained(2), weight=weight)
    weight[0, 0] = 7
    assert head.weight[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        head.weight[0, 0] = 7
    with pytest.raises(AttributeError, match="weight"):
        head.weight = weight


@pytest.mark.parametrize(
    ("name", "shape"),
    [("weight", (2, 3)), ("weight", (2,)), ("dendrite_weight", (1, 2, 2)), ("top", (2,))],
)
def test_shapes_that_do_not_fit_are_refused(name, shape):
    """Every array is held against the others; the message has all shapes."""
    with pytest.raises(ValueError, match=r"do not fit together: .*'top'"):
        replace(make_head(), **{name: np.zeros(shape)})


def test_save_and_load_keep_every_weight(tmp_path):
    """What is loaded has the same weights bit for bit and computes the same."""
    head = make_head()
    head.save(tmp_path / "head.safetensors")
    loaded = DendriticHead.load(tmp_path / "head.safetensors")
    assert (loaded.dimension, loaded.dendrites) == (2, 2)
    for name, array in head.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array, err_msg=name)


def test_a_file_written_by_torch_is_read(tmp_path):
    """Heads were saved from PyTorch once; the format is the same."""
    from safetensors.torch import save_file as save_torch

    head = make_head()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in head.arrays.items()}
    metadata = {"format": "nexus-dendritic-head", "version": "1"}
    save_torch(tensors, tmp_path / "old.safetensors", metadata=metadata)
    head.save(tmp_path / "new.safetensors")
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    assert DendriticHead.load(old).weight.tolist() == head.weight.tolist()
    assert load_file(old).keys() == load_file(new).keys()


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_file_is_damaged(tmp_path, keep):
    """A file cut off anywhere is told apart from a whole one."""
    path = tmp_path / "head.safetensors"
    make_head().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged"):
        DendriticHead.load(path)


def test_foreign_files_are_refused(tmp_path):
    """Text, and safetensors of something else, are no heads."""
    (tmp_path / "text").write_text("not a head at all, but long enough to hold a length")
    with pytest.raises(ValueError, match="is damaged"):
        DendriticHead.load(tmp_path / "text")
    save_file({"weight": np.eye(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no dendritic head"):
        DendriticHead.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weight", np.eye(3)),
        ("top", np.zeros((1, 2))),
        ("extra", np.zeros(1)),
        ("top", None),
        ("weight", np.array(1.0)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, name, array):
    """Arrays of another shape, too many or too few make no head."""
    path = tmp_path / "head.safetensors"
    make_head().save(path)
    arrays = load_file(path)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    save_file(arrays, path, metadata={"format": "nexus-dendritic-head"})
    with pytest.raises(ValueError, match="does not fit together"):
        DendriticHead.load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad):
    """A head with NaN or infinity would make every similarity NaN."""
    weights = make_head().dendrite_weight.copy()
    weights[1, 0, 1] = bad
    head = replace(make_head(), dendrite_weight=weights)
    head.save(tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        DendriticHead.load(tmp_path / "head.safetensors")
