"""Choose a recipe by cross-validation: `python -m benchmarks.choose DIR --vary anchor 0.25 0.5`.

The train and dev questions of DIR are cut into folds. For every setting and fold, heads are fitted
on the other folds (a share of them chooses epoch and γ) and judged on the fold, before and after
NUDGE-N. Test questions are never read. With `--by document` no two folds ask about the same
document. The benchmark appends rows to OUTPUT.jsonl, measures no recorded run again, and writes
OUTPUT.md from all rows.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

from benchmarks.corpora import Corpus, remembering_encoder
from benchmarks.mean import Mean
from benchmarks.record import Row, file_of, read_rows, table, write_page
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations import FinetuneConfig

_DEV_SHARE = 0.125

_PAGE = """# How recipes were chosen

Written by `python -m benchmarks.choose` from the rows in [{file}.jsonl]({file}.jsonl):
cross-validation over the train and dev questions, never test. nDCG@10 on the fold that was left
out, mean over folds with its 95 % interval (Student's t), best first. Settings that are not named
are the defaults.
"""


def main() -> None:
    """Measure every combination of the settings given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument(
        "--vary", nargs="+", action="append", default=[], metavar=("SETTING", "VALUE")
    )
    parser.add_argument("--by", choices=["query", "document"], default="query")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/choice"))
    options = parser.parse_args()
    path = file_of(options.output, ".jsonl")
    encoder = remembering_encoder(None, options.vectors) if options.folders else None
    for folder in options.folders:
        assert encoder is not None
        for corpus in folds(Corpus.read(folder), options.folds, options.by):
            bench = Bench(corpus, encoder, path, questions=False)
            for config in combinations(options.vary):
                bench.finetuned(varied(config), config)
    write_page(options.output, page(read_rows(path), options.output.name))


def folds(corpus: Corpus, count: int, by: str) -> Iterator[Corpus]:
    """Yield the corpus once per fold, which is its test, with train and dev from the others."""
    parts = corpus.train.joined(corpus.dev).split(*[1] * count, by=by, seed=0)
    for number, fold in enumerate(parts):
        rest = [part for part in parts if part is not fold]
        others = rest[0]
        for part in rest[1:]:
            others = others.joined(part)
        train, dev = others.split(1 - _DEV_SHARE, _DEV_SHARE, by=by, seed=0)
        name = f"{corpus.name}, fold {number + 1} of {count} by {by}"
        yield Corpus(name=name, train=train, dev=dev, test=fold)


def combinations(vary: Sequence[Sequence[str]]) -> Iterator[FinetuneConfig]:
    """Yield the settings in all combinations, linear heads unless told otherwise."""
    names = [name for name, *_ in vary]
    kinds = {field.name: field.type for field in fields(FinetuneConfig)}
    unknown = set(names) - set(kinds)
    if unknown:
        raise ValueError(f"no setting is called {unknown.pop()!r}: choose from {', '.join(kinds)}")
    values = [[_read(kinds[name], text) for text in texts] for name, *texts in vary]
    for chosen in product(*values):
        yield FinetuneConfig(**{"dendrites": 0, **dict(zip(names, chosen, strict=True))})


def _read(kind: Any, text: str) -> Any:
    for option in (kind, *get_args(kind)):  # a type, or one that may be None
        if option is bool:
            return text == "True"
        if option in (int, float):
            return option(text)
    return text


def varied(config: FinetuneConfig) -> str:
    """Name the settings in which a recipe differs from the defaults."""
    usual = asdict(FinetuneConfig())
    changed = [f"{name}={value}" for name, value in asdict(config).items() if value != usual[name]]
    return ", ".join(changed) or "defaults"


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        name, _, fold = row["set"].partition(", fold ")
        by = fold.rpartition(" ")[2]
        groups.setdefault((name, by), {}).setdefault(row["recipe"], []).append(row)
    parts = [_PAGE.format(file=file)]
    for (name, by), recipes in groups.items():
        found = []
        for recipe, group in recipes.items():
            stages = [
                Mean.of([row["test"][stage]["ndcg@10"] for row in group])
                for stage in (HEAD, NUDGED)
            ]
            seconds = sum(row["seconds"] for row in group) / len(group)
            found.append((recipe, stages, len(group), seconds))
        best = NUDGED if by == "query" else HEAD
        found.sort(key=lambda line: -line[1][best == NUDGED].mean)
        lines = [
            [recipe, str(count), *map(str, stages), f"{seconds:.1f}"]
            for recipe, stages, count, seconds in found
        ]
        parts += [
            f"## {name}, folds by {by}\n",
            table(["settings", "folds", HEAD, NUDGED, "seconds"], lines),
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
