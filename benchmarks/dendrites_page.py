"""The page on what dendrites add, from recorded rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks import gains
from benchmarks.mean import Mean
from benchmarks.record import Row, table
from benchmarks.runs import HEAD, NUDGED
from nexus_integrations import FinetuneConfig

LINEAR = "linear"
# Four cycles of twelve epochs, as a head with three dendrites is trained at least.
LONG = 48
# 2 · 384 · 768 parameters, as many as the layers of a head with three dendrites: 4 · 384².
HIDDEN = 768
KINDS = (
    LINEAR,
    "linear, as long",
    "MLP",
    "MLP, as long",
    "1 dendrite",
    "2 dendrites",
    "3 dendrites",
)

_PAGE = """# What dendrites add

Written by `python -m benchmarks.dendrites` from the rows in {files}; a row is one run. Frozen
all-MiniLM-L6-v2, heads fitted on train, the epoch (and with it the number of dendrites that are
kept) and γ chosen on dev, test evaluated once for each run. All kinds share loss, learning rate,
batches and the length of a cycle, {cycle} epochs; "as long" is one cycle of {long}. The MLP is
*B* gelu(*A v*) with {hidden} hidden units: as many parameters as a head with three dendrites. Each
kind is compared with the linear head. A run with one or two dendrites is the beginning of the run
with three. Where that kept no more, the page takes its row, with the seconds until then; seed 0 is
the exception: all its runs were done. A run whose first dendrite failed in both tries stands for
any number of dendrites. "Over seeds" is the mean difference between runs of the same seed with its
95 % interval (Student's t); "over questions" is the difference between each question's means over
seeds with its bootstrap interval. Seconds are from runs on one thread of a machine without other
work, where there is one.
"""


_NAMES = {"query, linear": LINEAR, "query, up to 3 dendrites": "3 dendrites"}
_STS_NAMES = {"frozen-linear": LINEAR, "frozen": "1 dendrite"}


def page(rows: Sequence[Row], files: Sequence[str]) -> str:
    """Return the page in Markdown."""
    text = _PAGE.format(
        files=", ".join(f"[{name}]({name})" for name in files),
        cycle=FinetuneConfig().epochs,
        long=LONG,
        hidden=HIDDEN,
    )
    groups = _ablations(rows)
    parts = [text]
    for corpus, kinds in groups.items():
        parts += [f"## {corpus}, test nDCG@10\n", _table(kinds)]
    similar = _similar(rows)
    if LINEAR in similar:
        parts += ["## STS Benchmark, Spearman's ρ\n", _similar_table(similar)]
    parts.append("## What it shows\n")
    lines = [line for corpus, kinds in groups.items() for line in _shown(corpus, kinds)]
    return "\n".join([*parts, *lines, *_shown_similar(similar)]) + "\n"


def _ablations(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return the rows by set and kind of head; sets with the linear head alone are left out."""
    named = [
        {**row, "recipe": _NAMES.get(row["recipe"], row["recipe"])} for row in rows if "set" in row
    ]
    groups = gains.grouped([row for row in named if row["recipe"] in KINDS])
    return {corpus: kinds for corpus, kinds in groups.items() if len(kinds) > 1}


def _table(kinds: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    linear = kinds[LINEAR]
    for kind, group in _in_order(kinds):
        line: list[object] = [kind, len(group), Mean.of([row["dev"] for row in group])]
        for stage in (HEAD, NUDGED):
            line.append(gains.mean_of(group, stage))
            if kind == LINEAR:
                line += [None, None]
            else:
                line.append(gains.over_seeds(group, linear, stage).signed)
                line.append(gains.signed(gains.over_questions(group, stage, linear, stage)))
        lines.append([*line, *_training(group), gains.seconds_alone(group), _bytes(group, "bytes")])
    against = ["to linear, over seeds", "over questions"]
    head = ["head", "seeds", "dev", "test", *against, "with NUDGE-N", *against]
    return table([*head, "dendrites kept", "epochs, best", "seconds, alone", "bytes"], lines)


def _similar(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of the STS Benchmark by kind of head."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if "name" in row:
            kind = _STS_NAMES.get(row["name"], row["name"].removeprefix("frozen, "))
            if kind in KINDS:
                kinds.setdefault(kind, []).append(row)
    return kinds


def _similar_table(kinds: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    for kind, group in _in_order(kinds):
        changes = (_to_linear(group, kinds[LINEAR], part).signed for part in ("dev", "test"))
        lines.append(
            [
                kind,
                len(group),
                Mean.of([row["dev"] for row in group]),
                Mean.of([row["test"] for row in group]),
                *((None, None) if kind == LINEAR else changes),
                *_training(group),
                f"{_mean(group, 'seconds'):.0f}",
                _bytes(group, "bytes_added"),
            ]
        )
    head = ["head", "seeds", "dev", "test", "dev, to linear", "test, to linear"]
    return table([*head, "dendrites kept", "epochs, best", "seconds", "bytes"], lines)


def _to_linear(group: Sequence[Row], linear: Sequence[Row], part: str) -> Mean:
    known = {row["seed"]: row[part] for row in linear}
    return Mean.of([row[part] - known[row["seed"]] for row in group])


def _in_order(kinds: Mapping[str, Sequence[Row]]) -> list[tuple[str, Sequence[Row]]]:
    return [(kind, kinds[kind]) for kind in KINDS if kinds.get(kind)]


def _training(group: Sequence[Row]) -> list[str]:
    """Return the dendrites that were kept, and the epochs: how many, and the best."""
    kept = ", ".join(str(row["dendrites"]) for row in group)
    return [kept, f"{_mean(group, 'epochs'):.0f}, {_mean(group, 'best_epoch'):.1f}"]


def _bytes(group: Sequence[Row], key: str) -> str:
    return f"{_mean(group, key):,.0f}"


def _mean(group: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in group]))


def _shown(corpus: str, kinds: Mapping[str, Sequence[Row]]) -> list[str]:
    """Say what the rows of a set show of three dendrites, and which kind dev prefers."""
    three = kinds.get("3 dendrites")
    if three is None:
        return []
    lines = []
    for other in (LINEAR, "linear, as long", "MLP"):
        if other not in kinds:
            continue
        seeds = {row["seed"] for row in kinds[other]} & {row["seed"] for row in three}
        told = "; ".join(
            _verdict(stage, gains.over_questions(three, stage, kinds[other], stage))
            for stage in (HEAD, NUDGED)
        )
        lines.append(f"- {corpus}: three dendrites against {other}, {len(seeds)} seeds: {told}.")
    dev = {
        kind: float(np.mean([row["dev_nudged"] for row in group]))
        for kind, group in kinds.items()
        if all(row.get("dev_nudged") is not None for row in group)
    }
    ranked = ", ".join(f"{kind} {dev[kind]:.4f}" for kind in sorted(dev, key=lambda k: -dev[k]))
    told = f"- {corpus}: dev nDCG@10 after NUDGE-N (γ chosen on the same questions): {ranked}."
    return [*lines, told]


def _verdict(stage: str, difference: tuple[float, tuple[float, float]]) -> str:
    low, high = difference[1]
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"{stage} {gains.signed(difference)}, {verdict}"


def _shown_similar(kinds: Mapping[str, Sequence[Row]]) -> list[str]:
    lines = []
    for kind, count in (("1 dendrite", "one dendrite"), ("3 dendrites", "three dendrites")):
        if kind in kinds and LINEAR in kinds:
            dev, test = (_to_linear(kinds[kind], kinds[LINEAR], part) for part in ("dev", "test"))
            lines.append(
                f"- STS Benchmark: {count} against linear, {dev.count} seeds: dev {dev.signed}, "
                f"test {test.signed}."
            )
    return lines
