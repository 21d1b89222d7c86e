"""A graph's linear layers: found in float32, and put back in integers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nexus_integrations.backends.folder import GRAPH, WEIGHTS
from nexus_integrations.protocols import Floats, Integers


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Matrix products of one input: a linear layer, or query, key and value of an attention."""

    source: str
    products: list[Any]
    widths: list[int]  # of their outputs
    additions: list[Any]  # of the bias, or None
    weight: Floats  # (n_in, n_out), of all products side by side
    bias: Floats  # (n_out,)


@dataclass(frozen=True, kw_only=True)
class QuantisedLayer:
    """A layer in integers, but for a few channels of its input."""

    channels: Integers  # (n_few,)
    exact_weight: Floats  # (n_few, n_out)
    weight: NDArray[np.int8]  # (n_in, n_out), 0 in the rows of `channels`
    weight_scale: Floats  # (n_out,)
    bias: Floats  # (n_out,)
    inverse_smoothing: Floats  # (n_in,), 0 for `channels`
    scale: np.float32
    zero: np.uint8


def linear_layers(model: Any) -> list[Layer]:
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
        Layer(
            source=source,
            products=[product for product, *_ in parts],
            widths=[len(bias) for *_, bias in parts],
            additions=[addition for _, addition, *_ in parts],
            weight=np.concatenate([weight for *_, weight, _ in parts], axis=1),
            bias=np.concatenate([bias for *_, bias in parts]),
        )
        for source, parts in found.items()
    ]


def with_integers(model: Any, layers: Sequence[Layer], quantised: dict[int, QuantisedLayer]) -> Any:
    """Return the graph with these layers in integers."""
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
    name: str, layer: Layer, found: QuantisedLayer, outputs: Sequence[str]
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


def save_graph(model: Any, folder: Path) -> None:
    (folder / WEIGHTS).unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(folder / GRAPH),
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=1024,
    )
