"""A float32 graph in int8: linear layers in whole numbers, at a small and measured loss.

Activations are quantised with fixed ranges, so that no vector depends on its neighbours. Four known
steps keep the loss small at next to no cost in speed: a few channels that dwarf the others stay in
float32 (LLM.int8(), Dettmers et al., 2022, section 3.2), the large ones that are left are scaled
down and the weights' rows up (SmoothQuant, Xiao et al., 2023, eq. 4), weights are rounded one row
after another with what that changes made good by the rows to come (GPTQ, Frantar et al., 2023,
algorithm 1), and the mean error goes into the bias. Where that loses too much, the layers that lose
most per operation stay in float32.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nexus_integrations.backends.batches import padded
from nexus_integrations.backends.fastest import NEGLIGIBLE, sample_texts
from nexus_integrations.backends.folder import GRAPH, WEIGHTS
from nexus_integrations.backends.session import open_session, run_session
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.protocols import Floats, Integers

# Mean cosine over the texts held out that layers are left in float32 for, up to half of them: texts
# on other subjects lose more than twice as much.
_AIM = 0.9992
_HELD_OUT = 5  # every fifth text
_STRANGE = 0.3  # of a text's pieces, replaced by any of the vocabulary
_ROWS = 8192  # of activations that a layer is fitted to
_FEW = 16  # channels of a layer's input stay in float32
_DWARFS = 13  # where their largest is that many times the largest of the others: it takes time
_LAYERS = 8  # whose activations are held at a time
# Of the smoothing, the α of SmoothQuant. Above 0.8 it fits the texts at hand better and others
# worse: ranges follow the one largest value of a channel.
_STRENGTHS = (0.5, 0.6, 0.7, 0.8)
_MARGIN = 1.2  # of a range: other users' texts go beyond those at hand
_DAMPING = 0.01  # of the mean diagonal, as in GPTQ
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Matrix products of one input: a linear layer, or query, key and value of an attention."""

    source: str
    products: list[Any]
    widths: list[int]  # of their outputs
    additions: list[Any]  # of the bias, or None
    weight: Floats  # (n_in, n_out), of all products side by side
    bias: Floats  # (n_out,)


@dataclass(frozen=True, kw_only=True)
class _Quantised:
    """A layer in whole numbers, but for a few channels of its input."""

    channels: Integers  # (n_few,)
    exact_weight: Floats  # (n_few, n_out)
    weight: NDArray[np.int8]  # (n_in, n_out), 0 in the rows of `channels`
    weight_scale: Floats  # (n_out,)
    bias: Floats  # (n_out,)
    inverse_smoothing: Floats  # (n_in,), 0 for `channels`
    scale: np.float32
    zero: np.uint8


def quantise_graph(folder: Path, tokenizer: TextTokenizer) -> float:
    """Replace the float32 graph in `folder` by one in int8, and return the mean cosine to it.

    It is fitted to the demo corpus, which the package brings, and to the same with strange words in
    it, since other users' texts are about other things; it is measured on a part of the corpus that
    was held out. Raises `ValueError` for a model that loses too much with all its layers in float32
    but one.
    """
    texts = _texts(tokenizer)
    held_out = texts[::_HELD_OUT]
    fitted = [text for i, text in enumerate(texts) if i % _HELD_OUT]
    fitted += _strange(fitted, tokenizer.words())
    expected = _vectors(folder / GRAPH, held_out)
    model = onnx.load(str(folder / GRAPH))
    layers = _linear_layers(model)
    quantised = []
    for start in range(0, len(layers), _LAYERS):
        part = layers[start : start + _LAYERS]
        activations = _activations(folder, [layer.source for layer in part], fitted)
        quantised += [_quantise(layer, rows) for layer, rows in zip(part, activations, strict=True)]

    def measured(chosen: Iterable[int]) -> float:
        """Write the graph with these layers in whole numbers; return its mean cosine."""
        graph = _rewritten(model, layers, {i: quantised[i] for i in chosen})
        _save(graph, folder)
        return float((_vectors(folder / GRAPH, held_out) * expected).sum(axis=1).mean())

    whole = list(range(len(layers)))
    cosine = measured(whole)
    if cosine < _AIM:
        gains = [measured(j for j in whole if j != i) - cosine for i in whole]
        whole.sort(key=lambda i: gains[i] / layers[i].weight.size)
    while cosine < (_AIM if 2 * len(whole) > len(layers) else NEGLIGIBLE):
        whole.pop()  # the layer that loses most per operation
        if not whole:
            raise ValueError(f"this model loses too much in int8: its cosine is below {NEGLIGIBLE}")
        cosine = measured(whole)
    return cosine


def _texts(tokenizer: TextTokenizer) -> list[list[int]]:
    documents, queries = sample_texts()
    queries = queries[: len(documents)]
    return tokenizer.tokens(documents, "document").ids + tokenizer.tokens(queries, "query").ids


def _strange(texts: Sequence[list[int]], words: Sequence[int]) -> list[list[int]]:
    """Return every other text with any words of the vocabulary in place of some inside."""
    rng = np.random.default_rng(0)
    changed = []
    for text in texts[::2]:
        ids = np.array(text)
        inside = rng.random(len(ids)) < _STRANGE
        inside[[0, -1]] = False  # what marks the ends
        changed.append(np.where(inside, rng.choice(words, len(ids)), ids).tolist())
    return changed


def _vectors(graph: Path, texts: Sequence[Sequence[int]]) -> Floats:
    run = open_session(graph)
    return np.concatenate([run_session(run, *padded([ids])) for ids in texts])


def _linear_layers(model: Any) -> list[_Layer]:
    """Find the products with a constant matrix, and join those of one input."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    users = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    found: dict[str, list[tuple[Any, Any, Floats, Floats]]] = defaultdict(list)
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or len(tensor.dims) != 2:
            continue
        weight = numpy_helper.to_array(tensor)
        bias, addition = np.zeros(weight.shape[1], dtype=np.float32), None
        after = users[node.output[0]]
        if len(after) == 1 and after[0].op_type == "Add":
            other = next((name for name in after[0].input if name != node.output[0]), "")
            if other in constants and list(constants[other].dims) == [weight.shape[1]]:
                bias, addition = numpy_helper.to_array(constants[other]), after[0]
        found[node.input[0]].append((node, addition, weight, bias))
    return [
        _Layer(
            source=source,
            products=[product for product, *_ in parts],
            widths=[len(bias) for *_, bias in parts],
            additions=[addition for _, addition, *_ in parts],
            weight=np.concatenate([weight for *_, weight, _ in parts], axis=1),
            bias=np.concatenate([bias for *_, bias in parts]),
        )
        for source, parts in found.items()
    ]


def _activations(
    folder: Path, names: Sequence[str], texts: Sequence[Sequence[int]]
) -> list[Floats]:
    """Return the inputs of layers over all texts, (n_rows, n_in) each, some rows left out."""
    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    watched = folder / "watched.onnx"
    watched.write_bytes(model.SerializeToString())
    try:
        run = open_session(watched)
        every = -(-sum(map(len, texts)) // _ROWS)
        parts = [
            [rows.reshape(-1, rows.shape[-1])[::every] for rows in run.run(list(names), feed)]
            for feed in map(_feed, texts)
        ]
    finally:
        watched.unlink()
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def _feed(text: Sequence[int]) -> dict[str, Integers]:
    ids, mask = padded([text])
    return {"input_ids": ids, "attention_mask": mask}


def _quantise(layer: _Layer, rows: Floats) -> _Quantised:
    """Set the channels that dwarf the others apart, choose the smoothing that loses least, round.

    `rows` is (n_rows, n_in).
    """
    channels = _dwarfing(rows, layer.weight)
    rows, exact = rows.copy(), layer.weight.copy()
    rows[:, channels] = exact[channels] = 0
    sample = rows[:: max(1, len(rows) // 1024)]
    losses = []
    for strength in _STRENGTHS:
        smoothing = _smoothing(rows, exact, strength)
        scale, zero = _range(rows / smoothing)
        weight = exact * smoothing[:, None]
        steps = _steps(weight)
        found = _rounded(sample / smoothing, scale, zero) @ (np.round(weight / steps) * steps)
        losses.append((found - sample @ exact).var(axis=0).sum())
    smoothing = _smoothing(rows, exact, _STRENGTHS[int(np.argmin(losses))])
    smooth = rows / smoothing
    scale, zero = _range(smooth)
    weight = exact * smoothing[:, None]
    steps = _steps(weight)
    whole = _compensated(weight, smooth, steps)
    found = _rounded(smooth, scale, zero) @ (whole * steps)
    inverse = np.asarray(1 / smoothing, dtype=np.float32)
    inverse[channels] = 0
    return _Quantised(
        channels=channels,
        exact_weight=layer.weight[channels],
        weight=whole.astype(np.int8),
        weight_scale=steps,
        bias=layer.bias - (found - rows @ exact).mean(axis=0),
        inverse_smoothing=inverse,
        scale=scale,
        zero=zero,
    )


def _dwarfing(rows: Floats, weight: Floats) -> Integers:
    """Return the channels, (n_few,), that would stretch the range of all; none where none do."""
    # Smoothing moves largeness between activations and weights: what counts is their product.
    size = np.abs(rows).max(axis=0) * np.abs(weight).max(axis=1)  # (n_in,)
    order = np.argsort(-size)
    few, others = order[:_FEW], order[_FEW:]
    if not len(others) or size[few[0]] < _DWARFS * size[others[0]]:
        return np.empty(0, dtype=np.int64)
    return np.sort(few)


def _smoothing(rows: Floats, weight: Floats, strength: float) -> Floats:
    largest = np.maximum(np.abs(rows).max(axis=0), 1e-5)  # (n_in,)
    heaviest = np.maximum(np.abs(weight).max(axis=1), 1e-5)  # (n_in,)
    smoothing = largest**strength / heaviest ** (1 - strength)
    return np.asarray(smoothing / np.exp(np.log(smoothing).mean()), dtype=np.float32)


def _range(rows: Floats) -> tuple[np.float32, np.uint8]:
    low, high = _MARGIN * min(float(rows.min()), 0.0), _MARGIN * max(float(rows.max()), 1e-5)
    scale = (high - low) / 255
    return np.float32(scale), np.uint8(round(-low / scale))


def _steps(weight: Floats) -> Floats:
    return np.asarray(np.maximum(np.abs(weight).max(axis=0), 1e-8) / 127, dtype=np.float32)


def _rounded(rows: Floats, scale: np.float32, zero: np.uint8) -> Floats:
    whole = np.clip(np.round(rows / scale) + np.float32(zero), 0, 255)
    return np.asarray((whole - np.float32(zero)) * scale, dtype=np.float32)


def _compensated(weight: Floats, rows: Floats, steps: Floats) -> NDArray[np.float64]:
    """Round a weight, (n_in, n_out), to whole steps, row by row, as GPTQ does."""
    hessian = (rows.T @ rows).astype(np.float64) / len(rows)  # (n_in, n_in)
    hessian[np.diag_indices(len(hessian))] += _DAMPING * np.trace(hessian) / len(hessian)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = weight.astype(np.float64)
    whole = np.zeros_like(left)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.zeros((stop - start, left.shape[1]))
        for row in range(start, stop):
            whole[row] = np.clip(np.round(left[row] / steps), -127, 127)
            error = (left[row] - whole[row] * steps) / upper[row, row]
            left[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return whole


def _rewritten(model: Any, layers: Sequence[_Layer], quantised: dict[int, _Quantised]) -> Any:
    """Return the graph with these layers in whole numbers."""
    constants: list[Any] = []
    instead: dict[str, list[Any]] = {}  # the first product's output: the nodes in its place
    gone: set[str] = set()
    for number, found in quantised.items():
        layer = layers[number]
        outputs = [
            (product if addition is None else addition).output[0]
            for product, addition in zip(layer.products, layer.additions, strict=True)
        ]
        nodes, arrays = _nodes(f"int8_{number}", layer, found, outputs)
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        instead[layer.products[0].output[0]] = nodes
        gone.update(product.output[0] for product in layer.products)
        gone.update(outputs)
    nodes = []
    for node in model.graph.node:
        nodes += instead.get(node.output[0], [] if node.output[0] in gone else [node])
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(
        nodes, model.graph.name, model.graph.input, model.graph.output, kept + constants
    )
    versions = {imported.domain: imported.version for imported in model.opset_import}
    versions["com.microsoft"] = 1
    return helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=[helper.make_opsetid(*item) for item in versions.items()],
    )


def _nodes(
    name: str, layer: _Layer, found: _Quantised, outputs: Sequence[str]
) -> tuple[list[Any], dict[str, Any]]:
    """Return smoothing, rounding, product, the few exact channels, and the parting of several."""
    arrays: dict[str, Any] = {
        f"{name}_smoothing": found.inverse_smoothing,
        f"{name}_scale": found.scale,
        f"{name}_zero": found.zero,
        f"{name}_weight": found.weight,
        f"{name}_weight_scale": found.weight_scale,
        f"{name}_bias": found.bias.astype(np.float32),
    }
    joined = outputs[0] if len(outputs) == 1 else f"{name}_joined"
    most = f"{name}_most" if len(found.channels) else joined
    nodes = [
        helper.make_node("Mul", [layer.source, f"{name}_smoothing"], [f"{name}_smooth"]),
        helper.make_node(
            "QuantizeLinear",
            [f"{name}_smooth", f"{name}_scale", f"{name}_zero"],
            [f"{name}_whole"],
        ),
        helper.make_node(
            "MatMulIntegerToFloat",
            [f"{name}_{part}" for part in ("whole", "weight", "scale", "weight_scale", "zero")]
            + ["", f"{name}_bias"],
            [most],
            domain="com.microsoft",
        ),
    ]
    if len(found.channels):
        arrays[f"{name}_channels"] = found.channels
        arrays[f"{name}_exact_weight"] = found.exact_weight
        nodes += [
            helper.make_node(
                "Gather", [layer.source, f"{name}_channels"], [f"{name}_few"], axis=-1
            ),
            helper.make_node("MatMul", [f"{name}_few", f"{name}_exact_weight"], [f"{name}_rest"]),
            helper.make_node("Add", [most, f"{name}_rest"], [joined]),
        ]
    if len(outputs) > 1:
        arrays[f"{name}_widths"] = np.array(layer.widths, dtype=np.int64)
        nodes.append(helper.make_node("Split", [joined, f"{name}_widths"], list(outputs), axis=-1))
    return nodes, arrays


def _save(model: Any, folder: Path) -> None:
    (folder / WEIGHTS).unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(folder / GRAPH),
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=1024,
    )
