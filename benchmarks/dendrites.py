"""What dendrites add over the same head without them: `python -m benchmarks.dendrites`.

It trains heads of seven kinds on COVID-QA, PolicyQA (query side) and the STS Benchmark, with a
frozen backbone and five seeds, and compares each with the linear head of the same seed. It appends
rows to OUTPUT.jsonl, measures no run again that it or another benchmark has recorded, and writes
OUTPUT.md from all rows.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.corpora import Corpus, mapped, remembering_encoder
from benchmarks.dendrites_page import HIDDEN, KINDS, LINEAR, LONG, page
from benchmarks.mlp import MLPEncoder, fit_mlp
from benchmarks.record import (
    Row,
    append_row,
    file_of,
    find_row,
    machine,
    read_rows,
    write_page,
)
from benchmarks.runs import Bench
from benchmarks.sts.presets import PRESETS
from benchmarks.sts.runs import STSBenchmark, run, run_id, similarity_score
from nexus_integrations import DendriticEncoder, FinetuneConfig
from nexus_integrations.training.prepare import prepare

_STS = "stsb"


def main() -> None:
    """Run the ablation and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds the folders covidqa, policyqa and stsb")
    parser.add_argument("--sets", nargs="+", default=["covidqa", "policyqa", _STS])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--alone", action="store_true", help="measure runs of a busy machine again")
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/dendrites"))
    options = parser.parse_args()
    path = file_of(options.output, ".jsonl")
    files = [path, path.with_name("retrieval.jsonl"), path.with_name("sts-frozen.jsonl")]
    if options.data is not None:
        encoder = remembering_encoder(None, options.vectors)
        for name in options.sets:
            if name == _STS:
                pairs = STSBenchmark.read(options.data / name)
                for seed in options.seeds:
                    for kind in options.kinds:
                        _similarity(encoder, pairs, kind, seed, path)
                continue
            corpus = Corpus.read(options.data / name)
            bench = Bench(corpus, encoder, path, options.alone, files[1:2])
            for seed in options.seeds:
                for kind in options.kinds:
                    _retrieval(bench, kind, seed)
    write_page(options.output, page(read_rows(*files), [file.name for file in files]))


def configured(base: FinetuneConfig, kind: str, seed: int) -> FinetuneConfig:
    """Return the recipe of a kind of head."""
    dendrites = int(kind[0]) if kind[0].isdigit() else 0
    epochs = LONG if kind.endswith("as long") else base.epochs
    return replace(base, dendrites=dendrites, epochs=epochs, seed=seed)


def _retrieval(bench: Bench, kind: str, seed: int) -> Row:
    config = configured(FinetuneConfig(), kind, seed)
    if kind in ("1 dendrite", "2 dendrites") and seed:
        whole = _retrieval(bench, "3 dendrites", seed)
        if whole["dendrites"] <= config.dendrites:
            return bench.once(kind, config.settings(), lambda: beginning(whole, config.dendrites))
    if not kind.startswith("MLP"):
        return bench.finetuned(kind, config)

    def measure() -> Row:
        corpus = bench.corpus
        objective = prepare(bench.encoder, corpus.train, corpus.dev, config, bench.index)
        fitted = fit_mlp(objective, config.resolved("questions"), HIDDEN)
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

    return bench.once(kind, {**config.settings(), "hidden": HIDDEN}, measure)


def beginning(whole: Row, dendrites: int) -> Row:
    """Return the row of a run with fewer dendrites, where the run with three kept no more.

    Both runs are the same until the next dendrite is added, so nothing is measured again.
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
    recorded_row = find_row(key, path, path.with_name("sts-frozen.jsonl"))
    if recorded_row is not None:
        return recorded_row
    known = _known_from(encoder, pairs, kind, seed, path)
    if known is not None:
        taken = {
            "beginning_of": known["run"],
            "run": key,
            "name": name,
            "config": config.settings("pairs"),
        }
        row = {**known, **taken}
    elif kind.startswith("MLP"):
        row = {"run": key, "name": name, "seed": seed, **_similarity_mlp(encoder, pairs, config)}
    else:
        row = run(encoder, pairs, name, config)[1]
    append_row(path, row)
    print(_STS, name, seed, row["dev"], row["test"], row["seconds"], flush=True)
    return row


def _similarity_mlp(encoder: DendriticEncoder, pairs: STSBenchmark, config: FinetuneConfig) -> Row:
    objective = prepare(encoder, pairs.train, pairs.dev, config)
    fitted = fit_mlp(objective, config.resolved("pairs"), HIDDEN)
    return {
        "dev": round(fitted.score, 5),
        "test": round(similarity_score(MLPEncoder(encoder, fitted.heads), pairs.test), 5),
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "dendrites": 0,
        "parameters_added": fitted.parameters,
        "bytes_added": 4 * fitted.parameters,
        "seconds": round(fitted.seconds, 1),
        "config": {**config.settings("pairs"), "hidden": HIDDEN},
        "model": encoder.fingerprint,
        "data": pairs.digest,
        "machine": machine("torch"),
    }


def _known_from(
    encoder: DendriticEncoder, pairs: STSBenchmark, kind: str, seed: int, path: Path
) -> Row | None:
    """Return the row of a run with more or fewer dendrites that this run would only repeat.

    A run whose first dendrite failed in both tries adds no second one. A run with two is the
    beginning of the run with three where that kept no more than two.
    """
    if kind in ("2 dendrites", "3 dendrites"):
        one = _similarity(encoder, pairs, "1 dendrite", seed, path)
        if not one["dendrites"] and one["epochs"] == 3 * PRESETS["frozen"].epochs:
            return one
    if kind == "2 dendrites":
        three = _similarity(encoder, pairs, "3 dendrites", seed, path)
        return three if three["dendrites"] <= 2 else None
    return None


if __name__ == "__main__":
    main()
