"""What dendrites add over the same head without them: `python -m benchmarks.dendrites`.

Heads of six kinds on COVID-QA, PolicyQA (query side) and the STS Benchmark, frozen backbone, five
seeds, each against the linear head of the same seed. Rows are appended to OUTPUT.jsonl, rows that
are there, or in the records of the other benchmarks, are not measured again, and OUTPUT.md is
written from all of them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import runs
from benchmarks.corpora import Corpus, mapped, remembering_encoder
from benchmarks.mlp import MLPEncoder, fit_mlp
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations import DendriticEncoder, FinetuneConfig
from nexus_integrations.training import recipe as package
from nexus_integrations.training.presets import PRESETS
from nexus_integrations.training.sts import (
    Row,
    STSBenchmark,
    append_row,
    machine,
    read_rows,
    run,
    run_id,
    similarity_score,
)
from nexus_integrations.training.summary import Mean, markdown_table

LINEAR = "linear"
# Four cycles of twelve epochs, as a head with three dendrites is trained at least.
_LONG = 48
# 2 · 384 · 768 parameters, as many as the layers of a head with three dendrites: 4 · 384².
_HIDDEN = 768
KINDS = (
    LINEAR,
    "linear, as long",
    "MLP",
    "MLP, as long",
    "1 dendrite",
    "2 dendrites",
    "3 dendrites",
)
_STS = "stsb"

_PAGE = """# What dendrites add

Written by `python -m benchmarks.dendrites` from the rows in {files}; a row is one run. Frozen
all-MiniLM-L6-v2, heads fitted on train, the epoch (and with it the number of dendrites that are
kept) and γ chosen on dev, test evaluated once a run. All kinds share loss, learning rate, batches
and the length of a cycle, {cycle} epochs; "as long" is one cycle of {long}. The MLP is
*B* gelu(*A v*) with {hidden} hidden units, as many parameters as a head with three dendrites. Each
kind is held against the linear head. A run with one or two dendrites is the beginning of the run
with three; where that kept no more, its row is taken (with the seconds until then), but for seed 0,
whose runs were all done. A run whose first dendrite failed in both of its tries is that of any
number. "Over seeds" is the mean difference of runs of the same seed with its 95 % interval
(Student's t), "over questions" the difference of each question's mean over seeds with its bootstrap
interval. Seconds are of a run on one thread that waited for no other process, where there is one.
"""


def main() -> None:
    """Run the ablation and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds the folders covidqa, policyqa and stsb")
    parser.add_argument("--sets", nargs="+", default=["covidqa", "policyqa", _STS])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--alone", action="store_true", help="measure again what had to wait")
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/dendrites"))
    options = parser.parse_args()
    path = options.output.with_suffix(".jsonl")
    if options.data is not None:
        encoder = remembering_encoder(None, options.vectors)
        for name in options.sets:
            if name == _STS:
                pairs = STSBenchmark.read(options.data / name)
                for seed in options.seeds:
                    for kind in options.kinds:
                        _similarity(encoder, pairs, kind, seed, path)
                continue
            bench = Bench(
                Corpus.read(options.data / name),
                encoder,
                path,
                options.alone,
                (path.with_name("retrieval.jsonl"),),
            )
            for seed in options.seeds:
                for kind in options.kinds:
                    _retrieval(bench, kind, seed)
    folder = options.output.parent
    files = [path, folder / "retrieval.jsonl", folder / "sts-frozen.jsonl"]
    options.output.with_suffix(".md").write_text(
        page([row for file in files for row in read_rows(file)], [file.name for file in files]),
        encoding="utf-8",
    )


def configured(base: FinetuneConfig, kind: str, seed: int) -> FinetuneConfig:
    """Return the recipe of a kind of head."""
    dendrites = int(kind[0]) if kind[0].isdigit() else 0
    epochs = _LONG if kind.endswith("as long") else base.epochs
    return replace(base, dendrites=dendrites, epochs=epochs, seed=seed)


def _retrieval(bench: Bench, kind: str, seed: int) -> Row:
    config = configured(FinetuneConfig(), kind, seed)
    if kind in ("1 dendrite", "2 dendrites") and seed:
        whole = _retrieval(bench, "3 dendrites", seed)
        if whole["dendrites"] <= config.dendrites:
            return bench.once(kind, config.settings(), lambda: _beginning(whole, config.dendrites))
    if not kind.startswith("MLP"):
        return bench.finetuned(kind, config)

    def measure() -> Row:
        corpus = bench.corpus
        objective = package._retrieval(bench.encoder, corpus.train, corpus.dev, config, bench.index)
        fitted = fit_mlp(objective, config, _HIDDEN)
        return {
            "dev": round(fitted.score, 5),
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            "dendrites": 0,
            "bytes": 4 * fitted.parameters,
            "seconds": round(fitted.seconds, 2),
            **bench.judged(
                MLPEncoder(bench.encoder, fitted.heads), mapped(bench.test_index, bench.encoder)
            ),
        }

    return bench.once(kind, {**config.settings(), "hidden": _HIDDEN}, measure)


def _beginning(whole: Row, dendrites: int) -> Row:
    """Return the row of a run with fewer dendrites, where the run with three kept no more.

    The two are the same run until one dendrite more is added. Nothing is measured again.
    """
    epochs = [epoch for epoch in whole["history"] if epoch[0] <= dendrites]
    taken = ("dev", "dev_before", "best_epoch", "dendrites", "bytes", "gamma", "dev_nudged")
    return {
        **{key: whole[key] for key in (*taken, "nudge_seconds", "test", "per_query")},
        "epochs": len(epochs),
        "history": epochs,
        "seconds": epochs[-1][2],
        "beginning_of": whole["run"],
    }


def _similarity(
    encoder: DendriticEncoder, pairs: STSBenchmark, kind: str, seed: int, path: Path
) -> Row:
    recorded = {LINEAR: "frozen-linear", "1 dendrite": "frozen"}
    config = configured(PRESETS["frozen"], kind, seed)
    name = recorded.get(kind, f"frozen, {kind}")
    key = run_id(encoder, pairs, name, config)
    for file in (path, path.with_name("sts-frozen.jsonl")):
        for row in read_rows(file):
            if row["run"] == key:
                return row
    known = _known_from(encoder, pairs, kind, seed, path)
    if known is not None:
        taken = {
            "beginning_of": known["run"],
            "run": key,
            "name": name,
            "config": config.settings(),
        }
        row = {**known, **taken}
    elif kind.startswith("MLP"):
        objective = package._similarity(encoder, pairs.train, pairs.dev, config)
        fitted = fit_mlp(objective, replace(config, heads="shared"), _HIDDEN)
        row = {
            "run": key,
            "name": name,
            "seed": seed,
            "dev": round(fitted.score, 5),
            "test": round(similarity_score(MLPEncoder(encoder, fitted.heads), pairs.test), 5),
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            "dendrites": 0,
            "parameters_added": fitted.parameters,
            "bytes_added": 4 * fitted.parameters,
            "seconds": round(fitted.seconds, 1),
            "config": {**config.settings(), "hidden": _HIDDEN},
            "model": encoder.fingerprint,
            "data": pairs.digest,
            "machine": machine(),
        }
    else:
        row = run(encoder, pairs, name, config)[1]
    append_row(path, row)
    print(_STS, name, seed, row["dev"], row["test"], row["seconds"], flush=True)
    return row


def _known_from(
    encoder: DendriticEncoder, pairs: STSBenchmark, kind: str, seed: int, path: Path
) -> Row | None:
    """Return the row of another number of dendrites that this run would only repeat.

    A run whose first dendrite failed in both tries adds no second; a run with two is the beginning
    of the one with three, where that kept no more.
    """
    if kind in ("2 dendrites", "3 dendrites"):
        one = _similarity(encoder, pairs, "1 dendrite", seed, path)
        if not one["dendrites"] and one["epochs"] == 3 * PRESETS["frozen"].epochs:
            return one
    if kind == "2 dendrites":
        three = _similarity(encoder, pairs, "3 dendrites", seed, path)
        return three if three["dendrites"] <= 2 else None
    return None


def page(rows: Sequence[Row], files: Sequence[str]) -> str:
    """Return the page in Markdown."""
    parts = [
        _PAGE.format(
            files=", ".join(f"[{name}]({name})" for name in files),
            cycle=FinetuneConfig().epochs,
            long=_LONG,
            hidden=_HIDDEN,
        )
    ]
    names = {"query, linear": LINEAR, "query, up to 3 dendrites": "3 dendrites"}
    groups = runs.grouped(
        [
            {**row, "recipe": names.get(row["recipe"], row["recipe"])}
            for row in rows
            if "set" in row and names.get(row["recipe"], row["recipe"]) in KINDS
        ]
    )
    for corpus, kinds in groups.items():
        if len(kinds) == 1:
            continue  # no ablation here
        parts += [f"## {corpus}, test nDCG@10\n", _table(corpus, kinds), ""]
    similar = _similar(rows)
    if similar:
        parts += ["## STS Benchmark, Spearman's ρ\n", markdown_table(similar), ""]
    return "\n".join([*parts, _conclusion(groups, rows)])


def _table(corpus: str, kinds: dict[str, list[Row]]) -> str:
    lines = [
        [
            "head",
            "seeds",
            "dev",
            "test",
            "to linear, over seeds",
            "over questions",
            "with NUDGE-N",
            "to linear, over seeds",
            "over questions",
            "dendrites kept",
            "epochs, best",
            "seconds, alone",
            "bytes",
        ]
    ]
    linear = kinds[LINEAR]
    for kind in KINDS:
        group = kinds.get(kind)
        if not group:
            continue
        line = [kind, str(len(group)), str(Mean.of([row["dev"] for row in group]))]
        for stage in (HEAD, NUDGED):
            line.append(str(runs.mean_of(group, stage)))
            if kind == LINEAR:
                line += ["–", "–"]
            else:
                line.append(runs.over_seeds(group, linear, stage).signed)
                line.append(runs.signed(runs.over_questions(group, stage, linear, stage)))
        lines.append(
            [
                *line,
                ", ".join(str(row["dendrites"]) for row in group),
                f"{_mean(group, 'epochs'):.0f}, {_mean(group, 'best_epoch'):.1f}",
                runs.seconds_alone(group),
                f"{_mean(group, 'bytes'):,.0f}",
            ]
        )
    return markdown_table(lines)


def _similar(rows: Sequence[Row]) -> list[list[str]]:
    names = {"frozen-linear": LINEAR, "frozen": "1 dendrite"}
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if "name" in row:
            kind = names.get(row["name"], row["name"].removeprefix("frozen, "))
            if kind in KINDS:
                kinds.setdefault(kind, []).append(row)
    if LINEAR not in kinds:
        return []
    linear = {row["seed"]: row for row in kinds[LINEAR]}
    lines = [
        [
            "head",
            "seeds",
            "dev",
            "test",
            "dev, to linear",
            "test, to linear",
            "dendrites kept",
            "epochs, best",
            "seconds",
            "bytes",
        ]
    ]
    for kind in KINDS:
        group = kinds.get(kind)
        if not group:
            continue
        against = ["–", "–"]
        if kind != LINEAR:
            against = [
                Mean.of([row[part] - linear[row["seed"]][part] for row in group]).signed
                for part in ("dev", "test")
            ]
        lines.append(
            [
                kind,
                str(len(group)),
                str(Mean.of([row["dev"] for row in group])),
                str(Mean.of([row["test"] for row in group])),
                *against,
                ", ".join(str(row["dendrites"]) for row in group),
                f"{_mean(group, 'epochs'):.0f}, {_mean(group, 'best_epoch'):.1f}",
                f"{_mean(group, 'seconds'):.0f}",
                f"{_mean(group, 'bytes_added'):,.0f}",
            ]
        )
    return lines


def _mean(group: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in group]))


def _conclusion(groups: dict[str, dict[str, list[Row]]], similar: Sequence[Row]) -> str:
    """Say what the rows show of three dendrites, per set, and which kind dev prefers."""
    lines = ["## What it shows\n"]
    for corpus, kinds in groups.items():
        three = kinds.get("3 dendrites")
        if three is None or len(kinds) == 1:
            continue
        for other in (LINEAR, "linear, as long", "MLP"):
            if other not in kinds:
                continue
            told = []
            for stage in (HEAD, NUDGED):
                seeds = {row["seed"] for row in kinds[other]} & {row["seed"] for row in three}
                over = runs.over_questions(three, stage, kinds[other], stage)
                low, high = over[1]
                verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
                told.append(f"{stage} {runs.signed(over)}, {verdict}")
            lines.append(
                f"- {corpus}: three dendrites against {other}, {len(seeds)} seeds: "
                f"{'; '.join(told)}."
            )
        dev = {
            kind: float(np.mean([row["dev_nudged"] for row in group]))
            for kind, group in kinds.items()
            if all(row.get("dev_nudged") is not None for row in group)
        }
        ranked = sorted(dev, key=lambda kind: -dev[kind])
        lines.append(
            f"- {corpus}: dev nDCG@10 after NUDGE-N (γ chosen on the same questions): "
            + ", ".join(f"{kind} {dev[kind]:.4f}" for kind in ranked)
            + "."
        )
    linear = {row["seed"]: row for row in similar if row.get("name") == "frozen-linear"}
    for name in ("frozen", "frozen, 3 dendrites"):
        pairs = [(r, linear[r["seed"]]) for r in similar if r.get("name") == name]
        if pairs and linear:
            dev, test = (Mean.of([a[part] - b[part] for a, b in pairs]) for part in ("dev", "test"))
            count = "one dendrite" if name == "frozen" else "three dendrites"
            lines.append(
                f"- STS Benchmark: {count} against linear, {len(pairs)} seeds: dev {dev.signed}, "
                f"test {test.signed}."
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
