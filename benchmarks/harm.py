"""What tuning costs where it was not asked for: `python -m benchmarks.harm`.

The out-of-distribution test of the NUDGE paper: queries are clustered in two by k-means on their
vectors; everything is fitted and chosen on the train and dev questions of one cluster, and all
questions of the other are asked before and after, both ways round. And the STS Benchmark: Spearman
of the tuned encoder on pairs that have nothing to do with the corpus. Rows are appended to
OUTPUT.jsonl, rows that are there are not measured again, and OUTPUT.md is written from all of them.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.cluster import KMeans

from benchmarks.corpora import Corpus, index_of, mapped, remembering_encoder
from benchmarks.record import machine
from nexus_integrations import (
    DendriticEncoder,
    FinetuneConfig,
    RetrievalDataset,
    SimilarityDataset,
    evaluate,
    finetune,
    nudge_index,
)
from nexus_integrations.evaluation import mean_interval
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.sts import Row, STSBenchmark, append_row, read_rows
from nexus_integrations.training.summary import Mean, markdown_table

_RECIPES = {
    "linear, query": FinetuneConfig(dendrites=0),
    "linear, both": FinetuneConfig(dendrites=0, heads="shared"),
    "linear, each": FinetuneConfig(dendrites=0, heads="separate"),
    "3 dendrites, query": FinetuneConfig(),
}
_NUDGE = "NUDGE-N alone"
_LOSS, _FALL = 0.005, {"query": 0.01, "shared": 0.02, "separate": 0.02}
_STEP = 1e-4

_PAGE = """# No harm: questions of another kind, sentences of another kind

Written by `python -m benchmarks.harm` from the rows in [{file}.jsonl]({file}.jsonl). Frozen
all-MiniLM-L6-v2, {seeds}.

## The other cluster

The out-of-distribution test of the NUDGE paper. All questions of a set are clustered in two by
k-means on their vectors. Heads are fitted on the train questions of one cluster, epoch and γ chosen
on its dev questions; all questions of the other cluster are asked before and after, and then the
other way round. The change in nDCG@10 is over the questions of both clusters, with its 95 %
interval (bootstrap over questions of each one's mean over seeds). Aimed at: a loss of at most
{loss}.
"""


def main() -> None:
    """Run both tests and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="holds the folders of the sets, and stsb")
    parser.add_argument("--sets", nargs="+", default=["covidqa", "policyqa"])
    parser.add_argument("--recipes", nargs="+", default=list(_RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--vectors", type=Path, help="keep embedded texts here (.npz)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/harm"))
    options = parser.parse_args()
    path = options.output.with_suffix(".jsonl")
    if options.data is not None:
        encoder = remembering_encoder(None, options.vectors)
        pairs = STSBenchmark.read(options.data / "stsb").test
        for name in options.sets:
            corpus = Corpus.read(options.data / name)
            for recipe in [_NUDGE, *options.recipes]:
                seeds = [0] if recipe == _NUDGE else options.seeds
                for fitted in (0, 1):
                    settings = {"test": "cluster", "fitted": fitted, "seeds": seeds}
                    _once(
                        path, corpus, encoder, recipe, settings, _other_cluster,
                        corpus, encoder, _RECIPES.get(recipe), fitted, seeds,
                    )  # fmt: skip
                if recipe != _NUDGE:
                    _once(
                        path, corpus, encoder, recipe, {"test": "sts", "seeds": seeds}, _sentences,
                        corpus, encoder, _RECIPES[recipe], seeds, pairs,
                    )  # fmt: skip
    rows = read_rows(path)
    options.output.with_suffix(".md").write_text(page(rows, options.output.name), encoding="utf-8")


def _once(
    path: Path,
    corpus: Corpus,
    encoder: DendriticEncoder,
    recipe: str,
    settings: dict[str, Any],
    measure: Callable[..., Row],
    *arguments: Any,
) -> None:
    key = json.dumps([corpus.name, corpus.train.digest, encoder.fingerprint, recipe, settings])
    run = hashlib.sha256(key.encode()).hexdigest()[:16]
    if any(row["run"] == run for row in read_rows(path)):
        return
    begun = perf_counter()
    measured = measure(*arguments)
    row = {
        "run": run,
        "set": corpus.name,
        "recipe": recipe,
        **settings,
        **measured,
        "seconds": round(perf_counter() - begun, 1),
        "machine": machine("torch", "scikit-learn"),
    }
    append_row(path, row)
    print({k: v for k, v in row.items() if k not in ("changes", "machine")}, flush=True)


def _other_cluster(
    corpus: Corpus,
    encoder: DendriticEncoder,
    config: FinetuneConfig | None,
    fitted: int,
    seeds: Sequence[int],
) -> Row:
    every = corpus.train.joined(corpus.dev).joined(corpus.test)
    vectors = encoder.encode_queries(list(every.queries.values()))
    labels = KMeans(2, n_init=10, random_state=0).fit_predict(vectors)
    mine = {id_ for id_, label in zip(every.queries, labels, strict=True) if label == fitted}
    train, dev = (
        part.subset([id_ for id_ in part.queries if id_ in mine])
        for part in (corpus.train, corpus.dev)
    )
    others = every.subset([id_ for id_ in every.queries if id_ not in mine])
    index = index_of(encoder, every)
    before = evaluate(DenseRetriever(index, encoder), others).per_query["ndcg@10"]
    changes: dict[str, list[Any]] = {}
    for seed in seeds:
        tuned = encoder
        if config is not None:
            tuned = finetune(encoder, train, dev, replace(config, seed=seed), index=index).encoder
        moved = mapped(index, tuned)
        if config is not None:
            after = evaluate(DenseRetriever(moved, tuned), others).per_query["ndcg@10"]
            changes.setdefault("head", []).append(after - before)
        report = nudge_index(moved, tuned, train, dev)
        after = evaluate(DenseRetriever(moved, tuned), others).per_query["ndcg@10"]
        stage = "NUDGE-N" if config is None else "head + NUDGE-N"
        changes.setdefault(stage, []).append(after - before)
        own = _own(index, encoder, moved, tuned, corpus.test, mine)
    return {
        "questions": {"train": len(train), "dev": len(dev), "other": len(others)},
        "before": round(float(before.mean()), 5),
        "own_test_change": round(own, 5),
        "gamma": report.gamma,
        "per_seed": {
            stage: [round(float(change.mean()), 5) for change in found]
            for stage, found in changes.items()
        },
        "changes": {
            stage: np.rint(np.mean(found, axis=0) / _STEP).astype(int).tolist()
            for stage, found in changes.items()
        },
    }


def _own(
    before: Any,
    encoder: DendriticEncoder,
    after: Any,
    tuned: DendriticEncoder,
    test: RetrievalDataset,
    mine: set[str],
) -> float:
    """Return what the fitted cluster's own test questions gained."""
    own = test.subset([id_ for id_ in test.queries if id_ in mine])
    change = evaluate(DenseRetriever(after, tuned), own).metrics["ndcg@10"]
    return change - evaluate(DenseRetriever(before, encoder), own).metrics["ndcg@10"]


def _sentences(
    corpus: Corpus,
    encoder: DendriticEncoder,
    config: FinetuneConfig,
    seeds: Sequence[int],
    pairs: SimilarityDataset,
) -> Row:
    index = index_of(encoder, corpus.train)
    after: dict[str, list[float]] = {"query": [], "document": []}
    for seed in seeds:
        tuned = finetune(
            encoder, corpus.train, corpus.dev, replace(config, seed=seed), index=index
        ).encoder
        for role, found in after.items():
            found.append(round(_spearman(tuned, pairs, role), 5))
    return {
        "side": config.heads,
        "before": round(_spearman(encoder, pairs, "query"), 5),
        "after": after,
    }


def _spearman(encoder: DendriticEncoder, pairs: SimilarityDataset, role: str) -> float:
    encode = encoder.encode_queries if role == "query" else encoder.encode_documents
    first, second = encode(pairs.sentences1), encode(pairs.sentences2)
    return float(spearmanr(np.einsum("ij,ij->i", first, second), pairs.scores).statistic)


def page(rows: Sequence[Row], file: str) -> str:
    """Return the page in Markdown."""
    counts = sorted({len(row["seeds"]) for row in rows if row["recipe"] != _NUDGE})
    seeds = f"{' or '.join(map(str, counts))} seeds a recipe"
    clusters = [row for row in rows if row["test"] == "cluster"]
    lines = [
        [
            "set",
            "recipe",
            "seeds",
            "change, other cluster",
            "per direction",
            "within",
            "own cluster",
        ]
    ]
    for name, recipe in dict.fromkeys((row["set"], row["recipe"]) for row in clusters):
        group = [row for row in clusters if (row["set"], row["recipe"]) == (name, recipe)]
        for stage in group[0]["changes"]:
            changes = np.concatenate([row["changes"][stage] for row in group]) * _STEP
            low, high = mean_interval(changes, 0.95, 0)
            each = [np.mean(row["per_seed"][stage]) for row in group]
            mean = float(changes.mean())
            last = stage == list(group[0]["changes"])[-1]
            own = ", ".join(f"{row['own_test_change']:+.3f}" for row in group)
            lines.append(
                [
                    name,
                    f"{recipe}: {stage}" if recipe != _NUDGE else _NUDGE,
                    str(len(group[0]["seeds"])),
                    f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
                    ", ".join(f"{value:+.4f}" for value in each),
                    "yes" if mean >= -_LOSS else "no",
                    own if last else "–",
                ]
            )
    parts = [_PAGE.format(file=file, seeds=seeds, loss=_LOSS), markdown_table(lines) + "\n"]
    parts.append(
        '"Own cluster" is what the fitted cluster\'s own test questions gained after the last '
        "stage, last seed, per direction.\n"
    )
    lines = [["set", "recipe", "seeds", "before", "as queries", "as documents", "fall", "within"]]
    for row in rows:
        if row["test"] != "sts":
            continue
        query, document = (Mean.of(row["after"][role]) for role in ("query", "document"))
        fall = row["before"] - min(query.mean, document.mean)
        lines.append(
            [
                row["set"],
                row["recipe"],
                str(len(row["seeds"])),
                f"{row['before']:.4f}",
                str(query),
                str(document),
                f"{fall:.4f}",
                "yes" if fall <= _FALL[row["side"]] else "no",
            ]
        )
    parts += [
        "## The STS Benchmark\n",
        "Spearman's ρ on the test pairs by encoders tuned on the whole training set, mean over "
        "seeds with its 95 % interval (Student's t), both sentences embedded as queries, and both "
        "as documents. The fall is the larger of the two. Aimed at: at most "
        f"{_FALL['query']} with a query head, {_FALL['shared']} with heads on both sides.\n",
        markdown_table(lines) + "\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
