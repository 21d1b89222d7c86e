"""Two pictures of a run: how the heads grew, and how γ was chosen.

Figures are drawn without pyplot, so that no window, backend or global style is touched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nexus_integrations.training.fit import Epoch

_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#6b7280"
_SIZE = (7.0, 4.2)  # inches; 150 dots per inch make 1050 × 630 pixels


def plot_growth(history: Sequence[Epoch], baseline: float, path: str | Path) -> None:
    """Draw dev score and trained parameters per epoch, and each dendrite's arrival, as PNG or SVG.

    `baseline` is the dev score of untrained heads. Raises `ValueError` for an empty history.
    """
    if not history:
        raise ValueError("the history is empty: there is no growth to draw")
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] + 1.2), layout="constrained")
    score, size = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [epoch.epoch for epoch in history]
    scores = [epoch.score for epoch in history]
    best = max(history, key=lambda epoch: epoch.score)
    score.plot(epochs, scores, color=_BLUE, marker=".", label="dev score")
    score.axhline(baseline, color=_GREY, linestyle="--", label="untrained heads")
    score.plot(best.epoch, best.score, "o", color=_ORANGE, label=f"best: {best.score:.4f}")
    size.step(epochs, [epoch.parameters / 1e6 for epoch in history], where="mid", color=_BLUE)
    grown = 0
    for epoch in history:
        if epoch.dendrites > grown:
            grown = epoch.dendrites
            for axes in (score, size):
                axes.axvline(epoch.epoch - 0.5, color=_GREY, linewidth=0.8, alpha=0.6)
            size.annotate(
                f"+ dendrite {grown}",
                (epoch.epoch - 0.3, 0.06),
                xycoords=("data", "axes fraction"),
                color=_GREY,
                fontsize=8,
            )
    score.set_ylabel("dev score")
    score.set_title("Growth of the heads")
    score.legend(loc="center right", frameon=False)
    size.set_ylabel("parameters\n(millions)")
    size.set_xlabel("epoch")
    size.set_ylim(bottom=0)
    size.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, [score, size], path)


def plot_gamma(curve: Mapping[float, float], gamma: float, metric: str, path: str | Path) -> None:
    """Draw the metric that each γ gave on the judging queries, and the γ chosen, as PNG or SVG.

    Raises `ValueError` for an empty curve: a fixed γ was not chosen from one.
    """
    if not curve:
        raise ValueError("the curve is empty: γ was fixed or chosen without one")
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    gammas = sorted(curve)
    values = [curve[value] for value in gammas]
    axes.plot(gammas, values, color=_BLUE, marker=".", label=metric)
    if 0.0 in curve:
        axes.axhline(curve[0.0], color=_GREY, linestyle="--", label="not moved")
    if gamma in curve:
        label = f"chosen: γ = {gamma:g}, {curve[gamma]:.4f}"
        axes.plot(gamma, curve[gamma], "o", color=_ORANGE, label=label)
    axes.set_xlabel("γ, the bound on the squared distance moved")
    axes.set_ylabel(f"{metric} of the judging queries")
    axes.set_title("How far to nudge")
    axes.legend(frameon=False)
    _finish(figure, [axes], path)


def _finish(figure: Figure, axes: Sequence[Axes], path: str | Path) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
