"""Pictures of a run, as files and as parts of the report.

Figures are drawn without pyplot, so that no window, backend or global style is touched. Each is
made of six colours, which `inline_svg` turns into the page's own, light or dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from nexus_integrations.evaluation import Comparison, Evaluation
from nexus_integrations.protocols import Floats
from nexus_integrations.training.result import Epoch

_INK, _GREY, _RULE = "#1c2024", "#60656d", "#dcdfe4"
_BEFORE, _BLUE, _ORANGE = "#868c96", "#1f5fc4", "#b4490f"
# The page's name for each colour.
_VARIABLES = {
    _INK: "--ink",
    _GREY: "--grey",
    _RULE: "--rule",
    _BEFORE: "--before",
    _BLUE: "--blue",
    _ORANGE: "--orange",
}
_SIZE = (7.0, 4.2)  # inches; 150 dots per inch make 1050 × 630 pixels
_INLINE = (4.9, 3.1)  # inches; 353 points wide, so that text is readable on a phone
_FONT = 9.5  # points, in a report
_TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
_STEPS = 400  # as many steps of a staircase as a picture can show


def plot_growth(history: Sequence[Epoch], baseline: float, path: str | Path) -> None:
    """Draw dev score and trained parameters per epoch, and each dendrite's arrival, as PNG or SVG.

    `baseline` is the dev score of untrained heads. Raises `ValueError` for an empty history.
    """
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] + 1.2), layout="constrained")
    score, _ = _draw_growth(figure, history, baseline)
    score.set_title("Growth of the heads")
    score.legend(loc="center right", frameon=False)
    _finish(figure)
    figure.savefig(path, dpi=150)


def plot_gamma(curve: Mapping[float, float], gamma: float, metric: str, path: str | Path) -> None:
    """Draw the metric that each γ gave on the judging queries, and the γ chosen, as PNG or SVG.

    Raises `ValueError` for an empty curve: a fixed γ was not chosen from one.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = _draw_gamma(figure, curve, gamma, metric)
    axes.set_title("How far to nudge")
    axes.legend(frameon=False)
    _finish(figure)
    figure.savefig(path, dpi=150)


def growth_figure(history: Sequence[Epoch], baseline: float) -> Figure:
    """Draw what `plot_growth` draws, small, without title and legend."""
    figure = Figure(figsize=(_INLINE[0], _INLINE[1] + 0.5), layout="constrained")
    _draw_growth(figure, history, baseline)
    return _finish(figure, _FONT)


def gamma_figure(curve: Mapping[float, float], gamma: float, metric: str) -> Figure:
    """Draw what `plot_gamma` draws, small, without title and legend."""
    figure = Figure(figsize=_INLINE, layout="constrained")
    _draw_gamma(figure, curve, gamma, metric)
    return _finish(figure, _FONT)


def stages_figure(stages: Mapping[str, Evaluation], labels: Mapping[str, str]) -> Figure:
    """Draw each metric's mean and interval at every stage, the first in grey, the last in blue.

    `labels` maps the metrics to draw to what they are called.
    """
    figure = Figure(figsize=(_INLINE[0], 0.7 + 0.48 * len(labels)), layout="constrained")
    axes = figure.subplots()
    apart = 0.5 / max(1, len(stages) - 1)
    for number, stage in enumerate(stages.values()):
        last = number == len(stages) - 1
        rows = np.arange(len(labels)) - 0.25 + apart * number
        bounds = np.array([stage.intervals[metric] for metric in labels]).T  # (2, n_metrics)
        color = _BLUE if number else _BEFORE
        axes.hlines(rows, *bounds, color=color, linewidth=1.6, alpha=0.9 if last else 0.55)
        means = [stage.metrics[metric] for metric in labels]
        face = color if last or not number else "none"
        axes.scatter(means, rows, s=22, color=color, facecolor=face, zorder=3)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.invert_yaxis()
    axes.set_xlabel("mean over the questions, and its interval")
    _finish(figure, _FONT)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def changes_figure(changes: NDArray[np.float64], label: str) -> Figure:
    """Draw the change of each question, float64 (n_queries,), from the best to the worst."""
    figure = Figure(figsize=_INLINE, layout="constrained")
    axes = figure.subplots()
    falling = np.sort(changes)[::-1]
    if len(falling) > _STEPS:
        falling = np.quantile(falling, np.linspace(1, 0, _STEPS))
    edges = np.linspace(0, len(changes), len(falling) + 1)
    axes.stairs(np.maximum(falling, 0), edges, fill=True, color=_BLUE)
    axes.stairs(np.minimum(falling, 0), edges, fill=True, color=_ORANGE)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    reach = max(0.1, float(np.abs(falling).max()) * 1.08)
    axes.set_ylim(-reach, reach)
    axes.set_xlim(0, len(changes))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("questions, from the most improved to the most worsened")
    axes.set_ylabel(f"change in {label}")
    return _finish(figure, _FONT)


def learning_figure(curve: Mapping[int, Comparison], metric: str, label: str) -> Figure:
    """Draw the gain, with its interval, against the number of training questions."""
    figure = Figure(figsize=_INLINE, layout="constrained")
    axes = figure.subplots()
    sizes = sorted(curve)
    gains = [curve[size].differences[metric] for size in sizes]
    low, high = np.array([curve[size].intervals[metric] for size in sizes]).T
    axes.fill_between(sizes, low, high, color=_BLUE, alpha=0.16, linewidth=0)
    axes.plot(sizes, gains, color=_BLUE, marker="o", markersize=4)
    axes.axhline(0, color=_GREY, linestyle="--", linewidth=0.8)
    axes.set_xscale("log")  # sizes are usually doubled
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xlabel("training questions")
    axes.set_ylabel(f"gain in {label}")
    return _finish(figure, _FONT)


def map_figure(starts: Floats, ends: Floats, background: Floats) -> Figure:
    """Draw an arrow for each document that moved, over those that did not.

    All three are float32 (n, 2), in one plane. Arrow i has the id "move-i", for `inline_svg`.
    """
    every = np.concatenate([background, starts, ends])
    wide, high = np.maximum(np.ptp(every, axis=0), 1e-6).tolist()
    figure = Figure(figsize=(7.0, 7.0 * min(max(high / wide, 0.45), 0.75)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.scatter(background[:, 0], background[:, 1], s=9, color=_BEFORE, alpha=0.35, linewidth=0)
    axes.scatter(starts[:, 0], starts[:, 1], s=9, color=_BEFORE, linewidth=0)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        arrow = FancyArrowPatch(
            tuple(start.tolist()),
            tuple(end.tolist()),
            arrowstyle="-|>,head_length=2.4,head_width=1.3",
            shrinkA=0,
            shrinkB=0,
            linewidth=0.9,
            color=_BLUE,
            alpha=0.85,
        )
        arrow.set_gid(f"move-{number}")
        axes.add_patch(arrow)
    axes.update_datalim(every)
    axes.margins(0.04)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    return figure


def inline_svg(
    figure: Figure, name: str, label: str, titles: Mapping[str, str] | None = None
) -> str:
    """Return the figure as an SVG element to stand in a page.

    It takes its colours and its typeface from the page. `name` sets its ids apart from those of
    other figures, `label` tells it to who cannot see it, `titles` maps ids of its parts to what is
    shown when a pointer rests on them.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode()
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    text = re.sub(r"font: ([^'\"]*)'[^;\"]*", r"font: \1var(--sans)", text)
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style element would reach out into the page.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)[)\"]", text))
    for part in root.iter():
        id_ = part.get("id", "")
        if titles and id_ in titles:
            title = ElementTree.Element(f"{_SVG}title")
            title.text = titles[id_]
            part.insert(0, title)
        if id_ not in used:
            part.attrib.pop("id", None)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


_SVG = "{http://www.w3.org/2000/svg}"


def _draw_growth(figure: Figure, history: Sequence[Epoch], baseline: float) -> tuple[Axes, Axes]:
    if not history:
        raise ValueError("the history is empty: there is no growth to draw")
    score, size = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [epoch.epoch for epoch in history]
    scores = [epoch.score for epoch in history]
    best = max(history, key=lambda epoch: epoch.score)
    score.plot(epochs, scores, color=_BLUE, marker=".", label="dev score")
    score.axhline(baseline, color=_BEFORE, linestyle="--", label="untrained heads")
    score.plot(best.epoch, best.score, "o", color=_ORANGE, label=f"best: {best.score:.4f}")
    size.step(epochs, [epoch.parameters / 1e6 for epoch in history], where="mid", color=_BLUE)
    grown = 0
    for epoch in history:
        if epoch.dendrites > grown:
            grown = epoch.dendrites
            for axes in (score, size):
                axes.axvline(epoch.epoch - 0.5, color=_BEFORE, linewidth=0.8, alpha=0.6)
            size.annotate(
                f"+ dendrite {grown}",
                (epoch.epoch - 0.3, 0.06),
                xycoords=("data", "axes fraction"),
                color=_GREY,
                fontsize=8,
            )
    score.set_ylabel("dev score")
    size.set_ylabel("parameters\n(millions)")
    size.set_xlabel("epoch")
    size.set_ylim(bottom=0)
    size.xaxis.set_major_locator(MaxNLocator(integer=True))
    return score, size


def _draw_gamma(figure: Figure, curve: Mapping[float, float], gamma: float, metric: str) -> Axes:
    if not curve:
        raise ValueError("the curve is empty: γ was fixed or chosen without one")
    axes = figure.subplots()
    gammas = sorted(curve)
    values = [curve[value] for value in gammas]
    axes.plot(gammas, values, color=_BLUE, marker=".", label=metric)
    if 0.0 in curve:
        axes.axhline(curve[0.0], color=_BEFORE, linestyle="--", label="not moved")
    if gamma in curve:
        label = f"chosen: γ = {gamma:g}, {curve[gamma]:.4f}"
        axes.plot(gamma, curve[gamma], "o", color=_ORANGE, label=label)
    # The best γ is often small. Along its root, which is the distance, small ones have room.
    axes.set_xlim(0, gammas[-1] * 1.03 or 1)  # first: no root below 0
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    axes.set_xticks([tick for tick in _TICKS if tick <= gammas[-1]] or [gammas[-1]])
    axes.set_xticklabels([f"{tick:g}" for tick in axes.get_xticks()])
    axes.set_xlabel("γ, the bound on the squared distance moved")
    axes.set_ylabel(f"{metric} of the judging queries")
    return axes


def _finish(figure: Figure, size: float | None = None) -> Figure:
    """Draw in our colours; `size`, in points, is that of all text."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_RULE)
        axes.tick_params(color=_RULE, labelcolor=_GREY)
        axes.grid(color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # a $ is a $
        if size is not None:
            text.set_fontsize(size)
    for axes in figure.axes:
        axes.xaxis.label.set_color(_GREY)
        axes.yaxis.label.set_color(_GREY)
    return figure
