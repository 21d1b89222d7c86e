"""What the rows of many runs show: figures over seeds, and the gain by dendrites."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.mean import Mean
from benchmarks.record import Row

PUBLISHED = {"published-baseline": 0.8886, "published": 0.89167}
"""Validation Spearman as published, one seed each, by preset."""

# Settings in which a run with dendrites and its baseline may differ.
_GROWTH = ("dendrites", "tries", "warmup_epochs", "epochs")


def by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows of one recipe over its seeds, in the order of their first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def figures(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return a header and, per recipe, its figures over seeds, as text."""
    header = [
        "recipe",
        "seeds",
        "dev Spearman",
        "test Spearman",
        "epochs, best",
        "seconds",
        "dendrites kept",
        "parameters added",
        "bytes added",
    ]
    lines = []
    for name, group in by_name(rows).items():

        def mean(key: str, group: list[Row] = group) -> float:
            return float(np.mean([row[key] for row in group]))

        lines.append(
            [
                name,
                str(len(group)),
                str(Mean.of([row["dev"] for row in group])),
                str(Mean.of([row["test"] for row in group])),
                f"{mean('epochs'):.0f}, {mean('best_epoch'):.1f}",
                f"{mean('seconds'):.0f}",
                f"{mean('dendrites'):.1f}",
                f"{mean('parameters_added'):,.0f}",
                f"{mean('bytes_added'):,.0f}",
            ]
        )
    return header, lines


def gains(rows: Sequence[Row]) -> list[tuple[str, Mean, Mean]]:
    """Return, per recipe with dendrites, what it has over its baseline: dev and test, seed by seed.

    The baseline is the recipe with equal settings but for dendrites and epochs. A recipe without
    one in the rows is left out.
    """
    baselines = {_without_growth(row): row for row in rows if not row["config"]["dendrites"]}
    found = []
    for name, group in by_name(rows).items():
        pairs = [
            (row, baselines[_without_growth(row)])
            for row in group
            if row["config"]["dendrites"] and _without_growth(row) in baselines
        ]
        if pairs:
            dev, test = (
                Mean.of([grown[part] - plain[part] for grown, plain in pairs])
                for part in ("dev", "test")
            )
            found.append((name, dev, test))
    return found


def plot_sweep(rows: Sequence[Row], path: str | Path) -> None:
    """Draw dev and test Spearman of every recipe, a point per seed and the mean, as PNG or SVG."""
    groups = by_name(rows)
    figure = Figure(figsize=(9.0, 1.2 + 0.32 * len(groups)), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("dev", "test"), strict=True):
        for place, group in enumerate(groups.values()):
            values = [row[part] for row in group]
            color = "#ea580c" if group[0]["config"]["dendrites"] else "#2563eb"
            axes.plot(values, [place] * len(values), ".", color=color, alpha=0.5)
            axes.plot(np.mean(values), place, "|", color=color, markersize=14)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_xlabel(f"{part} Spearman")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle("With dendrites (orange) and without (blue); a bar is the mean over seeds")
    figure.savefig(path, dpi=150)


def _without_growth(row: Row) -> str:
    settings = {key: value for key, value in row["config"].items() if key not in _GROWTH}
    return repr([sorted(settings.items()), row["model"], row["data"]])
