"""Measure every stage of the main job on real corpora: `python -m benchmarks.retrieval DIR …`.

DIR is a BEIR folder with the splits train, dev and test, or a folder with LlamaIndex's
`train_dataset.json[.gz]` and `val_dataset.json[.gz]`, whose `val` asks about documents that were
never trained on. Heads are fitted on train, everything is chosen on dev, and test is evaluated for
each seed. Rows are appended to OUTPUT.jsonl, rows that are there are not measured again, and
OUTPUT.md is written from all of them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks import runs
from benchmarks.choose import combinations
from benchmarks.corpora import Corpus, remembering_encoder
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations import FinetuneConfig
from nexus_integrations.training.sts import Row, read_rows
from nexus_integrations.training.summary import markdown_table

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
all-MiniLM-L6-v2, mean over seeds with its 95 % interval (Student's t). The gain over the model as
it is has an interval over questions (paired bootstrap of each question's mean over seeds). Heads
were fitted on train, epoch and γ chosen on dev; "refit" heads were trained once more on train and
dev. Seconds are training and nudging of a seed on one thread, all weights on two, where it had to
wait for no other process; embedding comes on top.
"""


def main() -> None:
    """Run what the command line asks for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--sides", nargs="+", default=["query"], help="query shared separate")
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
        "--trainable", type=int, metavar="EPOCHS", help="train the backbone as well, nothing else"
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="with --trainable: then a head for each side on the backbone as it became",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="also train on train and dev; with --trainable nothing else, or the heads alone",
    )
    parser.add_argument("--alone", action="store_true", help="measure again what had to wait")
    parser.add_argument("--model", help="folder or hub name; by default all-MiniLM-L6-v2")
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/retrieval"))
    options = parser.parse_args()
    path = options.output.with_suffix(".jsonl")
    encoder = remembering_encoder(options.model, options.vectors) if options.folders else None
    for folder in options.folders:
        assert encoder is not None
        bench = Bench(Corpus.read(folder), encoder, path, options.alone)
        bench.base()
        if options.trainable:
            for seed in options.seeds:
                config = replace(_TRAINABLE, epochs=options.trainable, seed=seed)
                if options.heads:
                    heads = FinetuneConfig(
                        heads="separate", dendrites=0, seed=seed, refit=options.refit
                    )
                    bench.finetuned(f"{name(config)}, then {name(heads)}", config, heads)
                else:
                    config = replace(config, refit=options.refit)
                    bench.finetuned(name(config), config)
            continue
        refits = (False, True) if options.refit else (False,)
        for side, dendrites, refit, seed in product(
            options.sides, options.dendrites, refits, options.seeds
        ):
            config = FinetuneConfig(heads=side, dendrites=dendrites, seed=seed, refit=refit)
            (others,) = combinations(options.set)
            config = replace(
                config, **{setting: getattr(others, setting) for setting, _ in options.set}
            )
            given = "".join(f", {setting} {value}" for setting, value in options.set)
            bench.finetuned(name(config) + given, config)
    rows = read_rows(path)
    options.output.with_suffix(".md").write_text(page(rows, options.output.name), encoding="utf-8")


def name(config: FinetuneConfig) -> str:
    """Name a recipe of the page."""
    if config.backbone == "trainable":
        epochs = f"{config.epochs} epoch{'s' * (config.epochs > 1)}"
        return f"all weights, {epochs}" + (", refit" if config.refit else "")
    kind = f"up to {config.dendrites} dendrites" if config.dendrites else "linear"
    return f"{config.heads}, {kind}" + (", refit" if config.refit else "")


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    parts = [_PAGE.format(file=file)]
    for corpus, recipes in runs.grouped(rows).items():
        base = recipes["base"]
        lines = [
            ["recipe", "seeds", "head", "head + NUDGE-N", "gain", "γ", "dendrites kept", "seconds"]
        ]
        for stage in base[0]["test"]:
            value = f"{base[0]['test'][stage]['ndcg@10']:.4f}"
            gain = runs.signed(runs.over_questions(base, stage, base, "base"))
            head, nudged = (value, "–") if stage == "base" else ("–", value)
            lines.append([stage, "–", head, nudged, "–" if stage == "base" else gain, *"–––"])
        for recipe, group in recipes.items():
            if recipe == "base":
                continue
            last = NUDGED if NUDGED in group[0]["test"] else HEAD
            lines.append(
                [
                    recipe,
                    str(len(group)),
                    str(runs.mean_of(group, HEAD)),
                    str(runs.mean_of(group, NUDGED)) if last == NUDGED else "–",
                    runs.signed(runs.over_questions(group, last, base, "base")),
                    "–" if last == HEAD else ", ".join(f"{row['gamma']:g}" for row in group),
                    ", ".join(str(row["dendrites"]) for row in group),
                    runs.seconds_alone(group),
                ]
            )
        parts += [f"## {corpus}\n", markdown_table(lines) + "\n"]
    machines = sorted({row["machine"]["processor"] for row in rows})
    return "\n".join([*parts, f"Machines: {'; '.join(machines)}.\n"])


if __name__ == "__main__":
    main()
