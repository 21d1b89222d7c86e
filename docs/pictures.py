"""Draw the pictures of the documentation: `python docs/pictures.py [FOLDER]`.

results.svg and vectors.svg show recorded rows of docs/results; the others show definitions.
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc, FancyArrowPatch, FancyBboxPatch

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # where `benchmarks` is

from benchmarks import hybrid_page, record  # noqa: E402

INK, QUERY, DOCUMENT, FAINT = "#22303c", "#b4452c", "#00796b", "#9aa5ad"
mpl.rcParams.update(
    {
        "svg.hashsalt": "nexus-integrations",  # the same picture is the same file
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def canvas(width: float, height: float) -> Axes:
    """Return empty axes of which one unit is one inch."""
    figure, axes = plt.subplots(figsize=(width, height))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return axes


def box(axes: Axes, x: float, y: float, text: str, colour: str = INK, width: float = 1.5) -> None:
    """Draw a labelled box whose middle is (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.26),
            width,
            0.52,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white",
            edgecolor=colour,
            linewidth=1.4,
        )
    )
    axes.text(x, y, text, ha="center", va="center", color=colour)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK
) -> None:
    """Draw an arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, lw=1.4)
    )


def heads() -> None:
    """Which vectors a head maps, and what happens to the stored ones."""
    axes = canvas(8.6, 2.9)
    for y, name, colour in ((2.2, "question", QUERY), (0.7, "passage", DOCUMENT)):
        box(axes, 0.95, y, name, colour)
        arrow(axes, (1.75, y), (2.25, y), colour)
        box(axes, 3.0, y, "backbone", INK)
        arrow(axes, (3.8, y), (4.5, y), colour)
        axes.text(4.12, y + 0.16, "$v$", ha="center")
        arrow(axes, (6.05, y), (6.75, y), colour)
    box(axes, 5.27, 2.2, "query head", QUERY)
    box(axes, 5.27, 0.7, "document head", FAINT)
    axes.text(5.27, 0.22, 'heads="shared" or "separate" only', ha="center", color=FAINT, size=9)
    box(axes, 7.6, 2.2, "search", QUERY, 1.6)
    box(axes, 7.6, 0.7, "vector store", DOCUMENT, 1.6)
    arrow(axes, (7.6, 1.9), (7.6, 1.0), QUERY)
    axes.text(7.7, 1.45, "NUDGE turns\nthese vectors", va="center", size=9, color=DOCUMENT)


def dendrite() -> None:
    """A head with two dendrites."""
    axes = canvas(8.6, 3.4)
    box(axes, 0.8, 1.7, "$v$", INK, 0.9)
    for y, name, label in (
        (2.8, r"$W$", ""),
        (1.7, r"$\sigma(D_1 \cdot)$", "$t_1$"),
        (0.6, r"$\sigma(D_2 \cdot + c_{21} \odot)$", "$t_2$"),
    ):
        arrow(axes, (1.27, 1.7), (2.55, y))
        box(axes, 3.6, y, name, QUERY if label else INK, 2.0)
        arrow(axes, (4.65, y), (5.75, 1.7 + 0.12 * (y - 1.7)), QUERY if label else INK)
        axes.text(5.15, y + (0.08 if y != 1.7 else 0.12), label, color=QUERY)
    arrow(axes, (3.6, 1.42), (3.6, 0.9), QUERY)
    axes.text(3.72, 1.15, "$o_1$", color=QUERY)
    box(axes, 6.05, 1.7, "+", INK, 0.5)
    axes.plot([0.8, 0.8, 6.05], [2.0, 3.2, 3.2], color=INK, lw=1.4)
    arrow(axes, (6.05, 3.2), (6.05, 2.0))
    axes.text(3.4, 3.27, "residual: $v$ itself", ha="center", size=9)
    arrow(axes, (6.35, 1.7), (7.0, 1.7))
    box(axes, 7.7, 1.7, "normalise", INK, 1.3)


def nudge() -> None:
    """NUDGE-N in the plane of a document's vector and its questions."""
    axes = canvas(6.2, 3.9)
    middle, radius = np.array([1.2, 0.45]), 3.0
    start, toward, gamma = np.radians(14), np.radians(78), 0.28
    turned = start + np.arccos(1 - gamma / 2)

    def at(angle: float, length: float = radius) -> tuple[float, float]:
        x, y = middle + length * np.array([np.cos(angle), np.sin(angle)])
        return float(x), float(y)

    axes.add_patch(
        Arc(tuple(middle), 2 * radius, 2 * radius, theta1=-6, theta2=100, color=FAINT, lw=1)
    )
    for angle in np.radians([66, 74, 92]):
        arrow(axes, tuple(middle), at(angle, 2.55), FAINT)
    axes.text(*at(np.radians(92), 2.68), "questions", color=FAINT, ha="center", size=9)
    arrow(axes, tuple(middle), at(toward, 3.25), QUERY)
    axes.text(*at(toward, 3.36), "$G$, their sum", color=QUERY, ha="left", va="center")
    arrow(axes, tuple(middle), at(start), DOCUMENT)
    axes.text(*at(start, 3.12), "$v$, as embedded", color=DOCUMENT, va="center")
    arrow(axes, tuple(middle), at(turned), INK)
    axes.text(*at(turned, 3.1), r"$v(\gamma)$, as stored", va="center")
    axes.add_patch(
        Arc(
            tuple(middle),
            2.2,
            2.2,
            theta1=np.degrees(start),
            theta2=np.degrees(turned),
            color=INK,
            lw=1.4,
        )
    )
    axes.text(*at((start + turned) / 2, 1.3), r"$\cos = 1 - \gamma/2$", size=9, va="center")


def results() -> None:
    """Vectors, words, and both: the recorded test figures of five sets."""
    figure = plt.figure(figsize=(8.6, 3.4), layout="constrained")
    hybrid_page.chart(record.read_rows(DOCS / "results" / "hybrid.jsonl"), figure)


def vectors() -> None:
    """Vectors alone: the recorded test figures of two sets."""
    sets = (("covidqa", "COVID-QA"), ("policyqa", "PolicyQA"))
    figure, axes = plt.subplots(figsize=(8.6, 3.2))
    found = record.read_rows(DOCS / "results" / "retrieval.jsonl")
    rows = {row["run"]: row for row in found}.values()
    nudged = "head + NUDGE-N"
    shown = [
        ("base", "base", FAINT, "base"),
        ("base", "nudge-ft", "#6d8fa3", "nudge-ft"),
        ("base", "NUDGE-N", DOCUMENT, "our NUDGE alone"),
        ("query, linear", nudged, QUERY, "linear query head, then NUDGE"),
        ("query, up to 3 dendrites", nudged, "#7a2b1a", "dendritic query head, then NUDGE"),
        ("query, linear, refit", nudged, "#d98c4a", "linear, refit on train and dev, then NUDGE"),
    ]
    for number, (name, title) in enumerate(sets):
        for place, (recipe, stage, colour, label) in enumerate(shown):
            seeds = [row for row in rows if (row["set"], row["recipe"]) == (name, recipe)]
            value = sum(row["test"][stage]["ndcg@10"] for row in seeds) / len(seeds)
            x = number * 7.2 + place
            axes.bar(x, value, color=colour, label=label if number == 0 else None)
            axes.text(x, value + 0.006, f"{value:.3f}".lstrip("0"), ha="center", size=9)
        axes.text(number * 7.2 + 2.5, -0.05, title, ha="center", va="top")
    axes.set(ylim=(0, 0.6), xticks=[], ylabel="test nDCG@10", xlim=(-0.8, 13))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.6), fontsize=9)
    figure.tight_layout()


def main(folder: Path) -> None:
    """Write every picture as SVG, with its letters as paths: no font is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (heads, dendrite, nudge, results, vectors):
        draw()
        plt.savefig(folder / f"{draw.__name__}.svg", facecolor="white", metadata={"Date": None})
        plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images")
