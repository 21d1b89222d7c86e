"""How many questions to write: `python -m benchmarks.learning`.

It measures the gain on test against the number of training questions, on COVID-QA and PolicyQA, and
the gain of training on questions that `generate_questions` makes from the passages alone, without a
language model. It appends rows to OUTPUT.jsonl, measures no recorded run again, and writes
OUTPUT.md from all rows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from benchmarks import gains
from benchmarks.corpora import Corpus, index_of, remembering_encoder
from benchmarks.record import (
    Row,
    append_row,
    file_of,
    find_row,
    machine,
    read_rows,
    run_id,
    table,
    write_page,
)
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations import DendriticEncoder, FinetuneConfig
from nexus_integrations.data import generate_questions
from nexus_integrations.training.curve import SIZES, learning_curve

_METRICS = ("ndcg@10", "recall@10")
_OWN = "questions of the passages' own"

_PAGE = """# How many questions to write

Written by `python -m benchmarks.learning` from the rows in [{file}.jsonl]({file}.jsonl). Gain on
test over the untuned model: linear query head, then NUDGE-N, frozen all-MiniLM-L6-v2. Mean over
{seeds} seeds, each with its own draw of questions; 95 % intervals over the test questions
(bootstrap). "Held out": 15 % of the questions choose epoch and γ and count as questions; then heads
are trained on all of them (refit). "Dev beside": the whole dev set of the corpus chooses, and its
questions do not count.
"""

_OWN_PAGE = """## Questions from headings and first sentences

`generate_questions` without a language model: the heading and the first sentence of each passage
are its questions, and a question that does not find its passage among 50 is dropped. nDCG@10 on the
real test questions, mean over seeds with its interval; the gain has an interval over questions.
"""


def main() -> None:
    """Measure the curves and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds the folders of the sets")
    parser.add_argument("--sets", nargs="*", default=["covidqa", "policyqa"])
    parser.add_argument("--own", nargs="*", default=["covidqa"], help="sets to make questions for")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/learning"))
    options = parser.parse_args()
    path = file_of(options.output, ".jsonl")
    if options.data is not None:
        encoder = remembering_encoder(None, options.vectors)
        for name in options.sets:
            corpus = Corpus.read(options.data / name)
            for beside in (False, True):
                for size in options.sizes:
                    _point(path, corpus, encoder, size, options.seeds, beside)
        for name in options.own:
            _own_questions(path, Corpus.read(options.data / name), encoder, options.seeds)
    write_page(options.output, page(read_rows(path), options.output.name))


def _point(
    path: Path,
    corpus: Corpus,
    encoder: DendriticEncoder,
    size: int,
    seeds: Sequence[int],
    beside: bool,
) -> None:
    config = FinetuneConfig(dendrites=0, refit=not beside)
    run = run_id(corpus.name, corpus.train.digest, size, seeds, beside, config.settings())
    if find_row(run, path):
        return
    begun = perf_counter()
    curve = learning_curve(
        encoder,
        corpus.train,
        corpus.dev if beside else None,
        test=corpus.test,
        sizes=[size],
        config=config,
        index=index_of(encoder, corpus.train),
        seeds=seeds,
    )
    ((questions, gain),) = curve.items()
    row = {
        "run": run,
        "set": corpus.name,
        "recipe": "learning curve",
        "dev": "beside" if beside else "held out",
        "questions": questions,
        "seeds": list(seeds),
        "gain": {metric: round(gain.differences[metric], 5) for metric in _METRICS},
        "interval": {
            metric: [round(bound, 5) for bound in gain.intervals[metric]] for metric in _METRICS
        },
        "seconds": round((perf_counter() - begun) / len(seeds), 2),
        "settings": config.settings(),
        "model": encoder.fingerprint,
        "machine": machine("torch"),
    }
    append_row(path, row)
    print(corpus.name, row["dev"], questions, row["gain"], row["interval"], flush=True)


def _own_questions(
    path: Path, corpus: Corpus, encoder: DendriticEncoder, seeds: Sequence[int]
) -> None:
    made = generate_questions(corpus.train.corpus, encoder=encoder)
    train, dev = made.split(0.85, 0.15, seed=0)
    for name, judge in ((f"{_OWN}, chosen on them", dev), (f"{_OWN}, chosen on dev", corpus.dev)):
        bench = Bench(replace(corpus, train=train, dev=judge), encoder, path)
        bench.base()
        for side in ("query", "separate"):
            for seed in seeds:
                config = FinetuneConfig(dendrites=0, heads=side, seed=seed)
                bench.finetuned(f"{name}, {side}", config)


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    points = [row for row in rows if row["recipe"] == "learning curve"]
    seeds = " or ".join(map(str, sorted({len(row["seeds"]) for row in points})))
    parts = [_PAGE.format(file=file, seeds=seeds)]
    for name in dict.fromkeys(row["set"] for row in points):
        parts += [f"## {name}\n", _curve([row for row in points if row["set"] == name])]
    own = [row for row in rows if row["recipe"] != "learning curve"]
    if own:
        parts += [_OWN_PAGE, _own_table(own)]
    return "\n".join(parts)


def _curve(points: Sequence[Row]) -> str:
    lines = []
    for size in sorted({row["questions"] for row in points}):
        cells = []
        for dev in ("held out", "beside"):
            found = [r for r in points if r["questions"] == size and r["dev"] == dev]
            last = found[-1] if found else None
            cells.append(
                last and gains.signed((last["gain"]["ndcg@10"], last["interval"]["ndcg@10"]))
            )
        lines.append([size, *cells])
    head = ["questions", "gain in nDCG@10, held out", "gain in nDCG@10, dev beside"]
    return table(head, lines)


def _own_table(rows: Sequence[Row]) -> str:
    lines = []
    for name, recipes in gains.grouped(rows).items():
        base = recipes.pop("base")[:1]
        lines.append([name, "–", "–", f"{gains.mean_of(base, 'base').mean:.4f}", *"–––"])
        for recipe, group in recipes.items():
            means = [str(gains.mean_of(group, stage)) for stage in (HEAD, NUDGED)]
            changes = [
                gains.signed(gains.over_questions(group, stage, base, "base"))
                for stage in (HEAD, NUDGED)
            ]
            lines.append([name, recipe, str(len(group)), *means, *changes])
    head = ["set", "trained on", "seeds", HEAD, NUDGED, "gain of the head", "with NUDGE-N"]
    return table(head, lines)


if __name__ == "__main__":
    main()
