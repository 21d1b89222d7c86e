"""Measure the published STS Benchmark runs again: `run`, `sweep` and `report`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.record import Row, append_row, table
from benchmarks.sts import runs
from benchmarks.sts.page import write_page
from benchmarks.sts.presets import PRESETS
from benchmarks.sts.summary import figures, gains, plot_sweep
from nexus_integrations import DendriticEncoder

_DATA = "a folder with train.csv, dev.csv and test.csv (or .csv.gz): two sentences, score 0-5"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that `arguments` name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sts", description=__doc__)
    commands = parser.add_subparsers(required=True)

    one = commands.add_parser("run", help="train by one preset; print the run's row as JSON")
    one.add_argument("data", type=Path, help=_DATA)
    one.add_argument("output", type=Path, help="the folder to save the trained encoder to")
    one.add_argument("--preset", choices=list(PRESETS), default="frozen")
    one.add_argument("--model", help="an encoder or a sentence-transformers model")
    one.add_argument("--seed", type=int, help="by default the preset's")
    one.add_argument("--checkpoints", type=Path, help="keep every epoch here, and resume from it")
    one.add_argument("--rows", type=Path, help="append the row to this JSONL file")
    one.set_defaults(command=_run)

    many = commands.add_parser("sweep", help="train by many recipes; rows that exist are not rerun")
    many.add_argument("data", type=Path, help=_DATA)
    many.add_argument("rows", type=Path, help="the JSONL file of rows")
    many.add_argument("--backbone", choices=["frozen", "trainable"], default="frozen")
    many.add_argument("--seeds", type=int, default=5, help="how many seeds, counted from 0")
    many.add_argument("--presets", nargs="+", help="run these in place of the published grid")
    many.add_argument("--model", help="an encoder or a sentence-transformers model")
    many.add_argument("--plot", type=Path, help="draw all recipes to this PNG or SVG")
    many.set_defaults(command=_sweep)

    page = commands.add_parser("report", help="write sts.md and sts.png from sts-*.jsonl")
    page.add_argument("--results", type=Path, default=Path("docs/results"))
    page.set_defaults(command=lambda options: write_page(options.results))

    options = parser.parse_args(arguments)
    options.command(options)


def _run(options: argparse.Namespace) -> None:
    config = PRESETS[options.preset]
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    backend = "torch" if config.backbone == "trainable" else "auto"  # PyTorch alone can train
    encoder = DendriticEncoder.load(options.model, backend=backend)
    data = runs.STSBenchmark.read(options.data)
    result, row = runs.run(
        encoder, data, options.preset, config, checkpoint_dir=options.checkpoints
    )
    result.save(options.output)
    if options.rows is not None:
        append_row(options.rows, row)
    print(json.dumps(row, indent=1))


def _sweep(options: argparse.Namespace) -> None:
    seeds = range(options.seeds)
    recipes = (
        runs.preset_runs(options.presets, seeds)
        if options.presets
        else runs.published_grid(options.backbone, seeds)
    )
    encoder = DendriticEncoder.load(options.model, backend="torch")
    data = runs.STSBenchmark.read(options.data)

    def tell(row: Row) -> None:
        print(row["name"], row["seed"], row["dev"], row["test"], row["seconds"], flush=True)

    done = runs.sweep(encoder, data, recipes, options.rows, tell)
    if options.plot is not None:
        plot_sweep(done, options.plot)
    print(table(*figures(done)))
    for name, dev, test in gains(done):
        print(f"{name}: dendrites added {dev.signed} on dev, {test.signed} on test")


if __name__ == "__main__":
    main()
