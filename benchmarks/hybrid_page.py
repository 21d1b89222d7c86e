"""The page and the picture of vectors, words, and both, from recorded rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks import gains
from benchmarks.record import Row, table
from benchmarks.runs import HEAD

MODEL, BM25 = "model", "BM25"
FUSIONS: dict[str, Literal["LlamaIndex", "LangChain"]] = {
    "RRF, LlamaIndex": "LlamaIndex",
    "RRF, LangChain": "LangChain",
}
VECTORS, TUNED = "tuned vectors", "tune"
OWN, LEARNED = "BM25 with pairs", "BM25 with questions"
PEERS = (MODEL, BM25, *FUSIONS)
SYSTEMS = {
    **dict.fromkeys(PEERS, False),
    VECTORS: True,
    OWN: False,
    LEARNED: False,
    TUNED: True,
}
"""The systems that are compared, and whether a seed makes a difference to them."""

_INK = "#22303c"
_SHOWN = {
    MODEL: "#9aa5ad",
    BM25: "#6d8fa3",
    "RRF, LlamaIndex": "#d98c4a",
    VECTORS: "#00796b",
    TUNED: "#b4452c",
}
_LABELS = {
    MODEL: "model without tuning",
    "RRF, LlamaIndex": "rank fusion with equal weights",
    TUNED: "tune: vectors, words, weight",
}

_PAGE = """# Vectors, words, and both

Written by `python -m benchmarks.hybrid` from the rows in [{file}.jsonl]({file}.jsonl); a row is one
run, with its settings, its values for each test question, and the machine. nDCG@10 on the test
questions with all-MiniLM-L6-v2, mean over seeds {seeds}.

![Test nDCG@10 on each set]({file}.svg)

- **model**: the vectors without tuning.
- **BM25**: words alone, by bm25s (k1 1.2, b .75, Snowball stems, without stop words).
- **RRF**: reciprocal rank fusion of both with equal weights and constant 60, as LlamaIndex's
  `QueryFusionRetriever` and LangChain's `EnsembleRetriever` compute it, over the best {depth} of
  each side. Both get the same BM25: LangChain's own neither stems words nor leaves out stop words.
- **tuned vectors**: a linear query head, refit, then NUDGE-N.
- **BM25 with pairs**: our `LexicalIndex`, where two terms in a row are a term too.
- **BM25 with questions**: the same, and each passage also has the words of the train and dev
  questions that it answers.
- **tune**: one call fits heads, NUDGE, learned questions and the weight between vectors and words,
  and keeps each stage only where it helps on held-out questions.

Everything is chosen on train and dev. "To the best peer" is the difference to the best of model,
BM25 and RRF on the same test questions, with its 95 % interval (paired bootstrap of each question's
mean over seeds). CPU seconds are those of the whole run on one thread:
building, tuning and the test questions, without embedding. "Kept" names the stages that `tune` kept
and the weight of the words (0: vectors alone, inf: words alone).{unseen}
"""

_UNSEEN = """
The test questions of {} ask about documents that no training question is about, so no passage there
has learned questions or moved."""


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    groups = _ordered(rows)
    lines = []
    for name, systems in groups.items():
        peer = _best_peer(systems)
        for system, group in systems.items():
            change = None
            if system != peer:
                change = gains.signed(
                    gains.over_questions(group, _last(group), systems[peer], _last(systems[peer]))
                )
            value = f"{_value(group):.4f}"
            lines.append([name, system, value, change, _seconds(group), _kept(group)])
    # NUDGE cannot move passages that no question is about: such runs end with the head.
    unseen = [name for name, found in groups.items() if _last(found.get(VECTORS, [])) == HEAD]
    seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
    text = _PAGE.format(
        file=file,
        seeds=", ".join(map(str, seeds)),
        depth=next((row["settings"]["depth"] for row in rows if row["recipe"] in FUSIONS), "–"),
        unseen=_UNSEEN.format(" and ".join(unseen)) if unseen else "",
    )
    head = ["set", "retriever", "nDCG@10", "to the best peer", "CPU seconds", "kept"]
    machines = sorted({row["machine"]["processor"] for row in rows})
    parts = [text, table(head, lines), _missing(groups), f"Machines: {'; '.join(machines)}.\n"]
    return "\n".join(part for part in parts if part)


def _missing(groups: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """Say on which sets `tune` was not measured yet."""
    sets = [name for name, systems in groups.items() if TUNED not in systems]
    return f"Not measured yet: `tune` on {', '.join(sets)}.\n" if sets else ""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the picture of the page as SVG."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    chart(rows, figure)
    # Letters are paths, so no font is needed; the same rows make the same file.
    with mpl.rc_context({"svg.hashsalt": "nexus-integrations"}):
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def chart(rows: Sequence[Row], figure: Figure) -> None:
    """Draw nDCG@10 of each set and retriever as bars."""
    groups = _ordered(rows)
    axes = figure.subplots()
    for place, (system, colour) in enumerate(_SHOWN.items()):
        found = [
            (number * (len(_SHOWN) + 1) + place, _value(systems[system]))
            for number, systems in enumerate(groups.values())
            if system in systems
        ]
        if not found:
            continue
        places, values = zip(*found, strict=True)
        bars = axes.bar(places, values, width=0.92, color=colour, label=_LABELS.get(system, system))
        labels = [f"{value:.2f}".lstrip("0") for value in values]
        axes.bar_label(bars, labels, size=8, color=_INK, padding=1)
    middle = (len(_SHOWN) - 1) / 2
    axes.set_xticks([n * (len(_SHOWN) + 1) + middle for n in range(len(groups))], list(groups))
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.05), ylabel="test nDCG@10")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=len(_SHOWN), fontsize=8)


def _ordered(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows by set and system, the systems in the order of the page."""
    return {
        name: {system: systems[system] for system in SYSTEMS if system in systems}
        for name, systems in gains.grouped(rows).items()
    }


def _best_peer(systems: Mapping[str, Sequence[Row]]) -> str:
    return max((peer for peer in PEERS if peer in systems), key=lambda peer: _value(systems[peer]))


def _last(group: Sequence[Row]) -> str:
    """Return the last stage of a run, which is what it gives to the user."""
    return list(group[0]["test"])[-1] if group else ""


def _value(group: Sequence[Row]) -> float:
    return gains.mean_of(group, _last(group)).mean


def _seconds(group: Sequence[Row]) -> str | None:
    """Return the mean CPU seconds of a run; other work on the machine hardly changes them."""
    found = [row["cpu_seconds"] for row in group if "cpu_seconds" in row]
    return f"{np.mean(found):.1f}" if found else None


def _kept(group: Sequence[Row]) -> str | None:
    """Return what a tuning kept and the weight of the words, seed by seed where they differ."""
    if "kept" not in group[0]:
        return None
    kept = dict.fromkeys(", ".join(row["kept"]) or "nothing" for row in group)
    weights = dict.fromkeys(row["weight"] for row in group)
    return f"{' or '.join(kept)}; weight {', '.join(weights)}"
