"""A model's graph for ONNX Runtime, pooling and normalisation inside, by `torch.onnx`."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nexus_integrations.backends.folder import GRAPH, WEIGHTS
from nexus_integrations.backends.model import UnitVectors
from nexus_integrations.backends.session import import_onnxruntime, open_session, run_session
from nexus_integrations.extras import extra
from nexus_integrations.protocols import Floats, Integers

_ATTENTION = "nexus_onnx"
_TOLERANCE = 1e-5  # between the graph's vectors and the model's, in float32
_LONGEST = 1024  # tokens of a text that they are compared on


def export_graph(vectors: UnitVectors, folder: Path, vocabulary: int, max_length: int) -> None:
    """Write the graph and its weights, and hold its vectors against the model's.

    The graph takes ids and their mask, int64 (n, length) both. Attention becomes one operator where
    the model's architecture has transformers' interface for it, without the mask where nothing is
    padded, since its faster kernel takes none; and what the architecture writes out where not.
    `vocabulary` is the number of its tokens, `max_length` how many it reads of a text.

    Raises `ImportError` without onnx and onnxscript, `ValueError` for a model that cannot be
    exported.
    """
    import_onnxruntime()  # before the exporter, which may import it too
    with extra("train"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    failures = []
    for attention in (_ATTENTION, "eager"):
        try:
            with _silence(), _attention(vectors.model, attention):
                _write(vectors, folder)
            return _compare(vectors, folder, vocabulary, max_length)
        except Exception as error:  # the exporter fails in many ways, deep in three libraries
            if _is_the_machines(error):
                raise
            failures.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    raise ValueError(
        'this model cannot be exported to ONNX, use backend="torch": ' + "; ".join(failures)
    )


def _is_the_machines(error: BaseException | None) -> bool:
    """Tell a full disk or memory from a model that cannot be exported."""
    while error is not None:
        if isinstance(error, (OSError, MemoryError)) or "llocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _write(vectors: UnitVectors, folder: Path) -> None:
    ids = torch.arange(2 * 7).reshape(2, 7) % 5  # any two texts: both axes are free
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad():
        program = torch.onnx.export(
            vectors,
            (ids, mask),
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamo=True,
            dynamic_shapes=(axes, axes),
            verbose=False,
        )
    import onnx

    if program is None:
        raise ValueError("torch.onnx gave no graph")
    # Weights in a file of their own are mapped, not read: what is not used stays on the disk.
    onnx.save_model(
        _maskless_where_whole(_without_notes(_without_detours(program.model_proto))),
        str(folder / GRAPH),
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=1024,
    )


def _without_detours(model: Any) -> Any:
    """Take out of a graph, in place, what reshapes a tensor away and back.

    Each costs as long as a small product where texts are short.
    """
    graph = model.graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    makers = {name: node for node in graph.node for name in node.output}
    origin: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = origin.get(name, name)
        if node.op_type != "Reshape":
            continue
        source = node.input[0]
        while source in makers and makers[source].op_type == "Reshape":
            source = makers[source].input[0]
        if shapes.get(source) and shapes[source] == shapes.get(node.output[0]):
            origin[node.output[0]] = source
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return model


def _without_notes(model: Any) -> Any:
    """Take the exporter's notes out of a graph, in place: they hold paths of this machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


def _maskless_where_whole(model: Any) -> Any:
    """Let a graph, in place, leave the mask out of attention where no text is padded."""
    from onnx import TensorProto, helper

    graph = model.graph
    found = [
        node
        for node in graph.node
        if node.op_type == "MultiHeadAttention" and len(node.input) == 4  # with a mask of texts
    ]
    if not found:
        return model
    instead = {}
    for number, node in enumerate(found):
        *inputs, mask = node.input
        branches = {}
        for name, given in (("then", inputs), ("else", [*inputs, "", mask])):
            attention = type(node)()
            attention.CopyFrom(node)
            del attention.input[:]
            attention.input.extend(given)
            attention.output[0] = f"attention_{number}_{name}"
            value = helper.make_tensor_value_info(attention.output[0], TensorProto.FLOAT, None)
            branches[f"{name}_branch"] = helper.make_graph([attention], name, [], [value])
        instead[node.output[0]] = helper.make_node("If", ["whole"], list(node.output), **branches)
    nodes = [
        helper.make_node("ReduceMin", ["attention_mask"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["whole"], to=TensorProto.BOOL),
        *(instead.get(node.output[0], node) for node in graph.node),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _compare(vectors: UnitVectors, folder: Path, vocabulary: int, max_length: int) -> None:
    graph = open_session(folder / GRAPH)
    rng = np.random.default_rng(0)
    longest = min(max_length or _LONGEST, _LONGEST)  # what sees a window alone shows in long texts
    shapes = [((1, 1), True), ((2, 29), True), ((3, 12), True), ((4, 15), False)]
    for shape, whole in [*shapes, ((1, longest), True), ((3, longest), False)]:
        ids: Integers = rng.integers(0, vocabulary, shape)
        mask = np.ones_like(ids)
        if not whole:
            mask[0, 9:] = mask[2, 1:] = 0
        found: Floats = run_session(graph, ids, mask)
        with torch.no_grad():
            expected = vectors(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        difference = float(np.abs(found - expected).max())
        if not difference <= _TOLERANCE:  # NaN is none either
            raise ValueError(f"its graph gives other vectors, by up to {difference:.1g}")


def _one_operator(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as one operator of ONNX Runtime, for as many keys as queries.

    `attention_mask` is that of the texts, (n, length), where all positions see all that is no
    padding, and what is added to the scores, (n, 1, length, length), where they see less: within a
    window, or what precedes them.
    """
    texts, heads, length, width = query.shape

    def flat(tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).reshape(texts, length, heads * width)

    if key.shape != query.shape or value.shape != query.shape:
        raise ValueError("its attention has other keys than an encoder's")
    if attention_mask is None:
        raise ValueError("its attention has no mask")
    given: tuple[Tensor | None, ...]
    if attention_mask.shape == (texts, length):
        # Its place is after that of a bias: `_maskless_where_whole` puts it there.
        given = (attention_mask.to(torch.int32),)
    else:
        given = (None, None, attention_mask.expand(texts, 1, length, length))
    found = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (flat(query), flat(key), flat(value), *given),
        {"num_heads": heads, "scale": float(scaling if scaling is not None else width**-0.5)},
        dtype=query.dtype,
        shape=(texts, length, heads * width),
        version=1,
    )
    return found.reshape(texts, length, heads, width), None


def _mask(
    *, mask_function: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """Return the mask that `_one_operator` takes; `mask_function` tells who sees whom."""
    from transformers.masking_utils import bidirectional_mask_function, eager_mask

    if mask_function is bidirectional_mask_function:
        return attention_mask
    return eager_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)


@contextlib.contextmanager
def _attention(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model's transformers compute attention in another way for a while."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    AttentionInterface.register(_ATTENTION, _one_operator)
    AttentionMaskInterface.register(_ATTENTION, _mask)
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [module.config._attn_implementation for module in models]
    try:
        for module in models:
            module.set_attn_implementation(name)
        yield
    finally:
        for module, implementation in zip(models, before, strict=True):
            module.set_attn_implementation(implementation)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep hints for developers, the exporter's and transformers', out of the output."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "transformers.modeling_utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
