"""Measure every stage of the main job on real corpora: `python -m benchmarks.retrieval DIR …`.

DIR is a BEIR folder with the splits train, dev and test, or a folder with LlamaIndex's
`train_dataset.json[.gz]` and `val_dataset.json[.gz]`, whose `val` asks about other documents than
`train`. Heads are fitted on train, everything is chosen on dev, and test is evaluated once for each
seed. The benchmark appends rows to OUTPUT.jsonl, measures no recorded run again, and writes
OUTPUT.md from all rows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks import gains
from benchmarks.choose import combinations
from benchmarks.corpora import Corpus, remembering_encoder
from benchmarks.record import Row, file_of, read_rows, table, write_page
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations import FinetuneConfig

# Batch and rate of plain fine-tuning probes; not tuned here.
_TRAINABLE = FinetuneConfig(
    backbone="trainable",
    heads="shared",
    dendrites=0,
    batch_size=32,
    learning_rate=5e-5,
    backbone_learning_rate=5e-5,
)

_PAGE = """# Retrieval: what heads and NUDGE give

Written by `python -m benchmarks.retrieval` from the rows in [{file}.jsonl]({file}.jsonl); a row is
one run, with its settings, its values per test question, and the machine. nDCG@10 on test,
all-MiniLM-L6-v2, mean over seeds with its 95 % interval (Student's t). The gain is over the model
without fine-tuning, with an interval over questions (paired bootstrap of each question's mean over
seeds). Heads are fitted on train; epoch and γ are chosen on dev; "refit" heads are trained once
more on train and dev. Seconds are for training and nudging with one seed, without embedding: heads
on one thread, all weights on two. Only runs on a machine without other work count there.
"""


def main() -> None:
    """Run what the command line asks for and write the page."""
    options = _options()
    path = file_of(options.output, ".jsonl")
    encoder = remembering_encoder(options.model, options.vectors) if options.folders else None
    for folder in options.folders:
        assert encoder is not None
        bench = Bench(Corpus.read(folder), encoder, path, options.alone)
        bench.base()
        for seed in options.seeds:
            run = _all_weights if options.trainable else _heads
            run(bench, seed, options)
    write_page(options.output, page(read_rows(path), options.output.name))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--heads", nargs="+", default=["query"], help="query shared separate")
    parser.add_argument("--dendrites", nargs="+", type=int, default=[0, 3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("SETTING", "VALUE"),
        help="another value than the default, as `benchmarks.choose` found it",
    )
    parser.add_argument(
        "--trainable", type=int, metavar="EPOCHS", help="train the backbone too, and nothing else"
    )
    parser.add_argument(
        "--then-heads",
        action="store_true",
        help="with --trainable: then train a head for each side on the new backbone",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="also train on train and dev; with --trainable train on both only, or the heads only",
    )
    parser.add_argument("--alone", action="store_true", help="measure runs of a busy machine again")
    parser.add_argument("--model", help="folder or hub name; by default all-MiniLM-L6-v2")
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/retrieval"))
    return parser.parse_args()


def _all_weights(bench: Bench, seed: int, options: argparse.Namespace) -> None:
    config = replace(_TRAINABLE, epochs=options.trainable, seed=seed)
    if options.then_heads:
        heads = FinetuneConfig(heads="separate", dendrites=0, seed=seed, refit=options.refit)
        bench.finetuned(f"{name(config)}, then {name(heads)}", config, heads)
    else:
        config = replace(config, refit=options.refit)
        bench.finetuned(name(config), config)


def _heads(bench: Bench, seed: int, options: argparse.Namespace) -> None:
    (others,) = combinations(options.set)
    changed = {setting: getattr(others, setting) for setting, _ in options.set}
    given = "".join(f", {setting} {value}" for setting, value in options.set)
    refits = (False, True) if options.refit else (False,)
    for heads, dendrites, refit in product(options.heads, options.dendrites, refits):
        config = FinetuneConfig(heads=heads, dendrites=dendrites, seed=seed, refit=refit)
        bench.finetuned(name(config) + given, replace(config, **changed))


def name(config: FinetuneConfig) -> str:
    """Name a recipe of the page."""
    if config.backbone == "trainable":
        epochs = f"{config.epochs} epoch{'s' * (config.epochs > 1)}"
        return f"all weights, {epochs}" + (", refit" if config.refit else "")
    kind = f"up to {config.dendrites} dendrites" if config.dendrites else "linear"
    return f"{config.resolved('questions').heads}, {kind}" + (", refit" if config.refit else "")


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    parts = [_PAGE.format(file=file)]
    for corpus, recipes in gains.grouped(rows).items():
        base = recipes["base"]
        head = ["recipe", "seeds", HEAD, NUDGED, "gain", "γ", "dendrites kept", "seconds"]
        lines = []
        for stage in base[0]["test"]:
            value = f"{base[0]['test'][stage]['ndcg@10']:.4f}"
            gain = gains.signed(gains.over_questions(base, stage, base, "base"))
            values = (value, "–") if stage == "base" else ("–", value)
            lines.append([stage, "–", *values, "–" if stage == "base" else gain, *"–––"])
        for recipe, group in recipes.items():
            if recipe == "base":
                continue
            last = NUDGED if NUDGED in group[0]["test"] else HEAD
            lines.append(
                [
                    recipe,
                    str(len(group)),
                    str(gains.mean_of(group, HEAD)),
                    str(gains.mean_of(group, NUDGED)) if last == NUDGED else "–",
                    gains.signed(gains.over_questions(group, last, base, "base")),
                    "–" if last == HEAD else ", ".join(f"{row['gamma']:g}" for row in group),
                    ", ".join(str(row["dendrites"]) for row in group),
                    gains.seconds_alone(group),
                ]
            )
        parts += [f"## {corpus}\n", table(head, lines)]
    machines = sorted({row["machine"]["processor"] for row in rows})
    return "\n".join([*parts, f"Machines: {'; '.join(machines)}.\n"])


if __name__ == "__main__":
    main()
