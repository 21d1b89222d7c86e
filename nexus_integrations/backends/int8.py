"""A float32 graph in int8: linear layers in integers, at a small and measured loss.

Activations are quantised with fixed ranges, so that no vector depends on its neighbours. Four known
steps keep the loss small at next to no cost in speed: a few channels that dwarf the others stay in
float32 (LLM.int8(), Dettmers et al., 2022, section 3.2), the large ones that are left are scaled
down and the weights' rows up (SmoothQuant, Xiao et al., 2023, eq. 4), weights are rounded one row
after another with what that changes made good by the rows to come (GPTQ, Frantar et al., 2023,
algorithm 1), and the mean error goes into the bias. Where that loses too much, the layers that lose
most per operation stay in float32.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nexus_integrations.backends.batches import padded
from nexus_integrations.backends.fastest import NEGLIGIBLE, sample_texts
from nexus_integrations.backends.folder import GRAPH
from nexus_integrations.backends.int8_graph import (
    Layer,
    QuantisedLayer,
    linear_layers,
    save_graph,
    with_integers,
)
from nexus_integrations.backends.session import open_session, run_session
from nexus_integrations.backends.tokens import TextTokenizer
from nexus_integrations.protocols import Floats, Integers

# Mean cosine over the texts held out that layers are left in float32 for, up to half of them: texts
# on other subjects lose more than twice as much.
_AIM = 0.9992
_HELD_OUT = 5  # every fifth text
_STRANGE = 0.3  # of a text's tokens, replaced by any token of the vocabulary
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
    layers = linear_layers(model)
    quantised = []
    for start in range(0, len(layers), _LAYERS):
        part = layers[start : start + _LAYERS]
        activations = _activations(folder, [layer.source for layer in part], fitted)
        quantised += [_quantise(layer, rows) for layer, rows in zip(part, activations, strict=True)]

    def measured(chosen: Iterable[int]) -> float:
        """Write the graph with these layers in integers; return its mean cosine."""
        graph = with_integers(model, layers, {i: quantised[i] for i in chosen})
        save_graph(graph, folder)
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


def _quantise(layer: Layer, rows: Floats) -> QuantisedLayer:
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
    return QuantisedLayer(
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
