"""What tuning costs on questions and sentences of another kind: `python -m benchmarks.harm`.

The first test is the out-of-distribution test of the NUDGE paper. K-means on the query vectors cuts
the questions into two clusters; everything is fitted and chosen on the train and dev questions of
one cluster, and all questions of the other are asked before and after; then the clusters swap. The
second is the STS Benchmark: Spearman of the tuned encoder on pairs that have nothing to do with the
corpus. The benchmark appends rows to OUTPUT.jsonl, measures no recorded run again, and writes
OUTPUT.md from all rows.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.cluster import KMeans

from benchmarks.corpora import Corpus, index_of, mapped, remembering_encoder
from benchmarks.gains import signed
from benchmarks.mean import Mean
from benchmarks.record import (
    STEP,
    Row,
    append_row,
    file_of,
    find_row,
    in_steps,
    machine,
    read_rows,
    run_id,
    table,
    write_page,
)
from benchmarks.runs import HEAD, NUDGED
from benchmarks.sts.runs import STSBenchmark
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

_RECIPES = {
    "linear, query": FinetuneConfig(dendrites=0),
    "linear, shared": FinetuneConfig(dendrites=0, heads="shared"),
    "linear, separate": FinetuneConfig(dendrites=0, heads="separate"),
    "3 dendrites, query": FinetuneConfig(),
}
_NUDGE = "NUDGE-N alone"
_LOSS, _FALL = 0.005, {"query": 0.01, "shared": 0.02, "separate": 0.02}

_PAGE = """# What tuning costs on questions and sentences of another kind

Written by `python -m benchmarks.harm` from the rows in [{file}.jsonl]({file}.jsonl). Frozen
all-MiniLM-L6-v2, {seeds}.

## The other cluster

The out-of-distribution test of the NUDGE paper. K-means on their vectors cuts the questions of a
set into two clusters. Heads are fitted on the train questions of one cluster, and its dev questions
choose epoch and γ; all questions of the other cluster are asked before and after; then the clusters
swap. The change in nDCG@10 is over the questions of both clusters, with its 95 % interval
(bootstrap over questions of each one's mean over seeds). The aim is a loss of at most {loss}.
"""

_STS_PAGE = """## The STS Benchmark

Spearman's ρ on the test pairs, by encoders tuned on the whole training set: mean over seeds with
its 95 % interval (Student's t), once with both sentences embedded as queries and once as documents.
The fall is the larger of the two. The aim is at most {query} with a query head, and {both} with
heads on both sides.
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
    path = file_of(options.output, ".jsonl")
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
                        path, corpus, encoder, recipe, settings, other_cluster,
                        corpus, encoder, _RECIPES.get(recipe), fitted, seeds,
                    )  # fmt: skip
                if recipe != _NUDGE:
                    _once(
                        path, corpus, encoder, recipe, {"test": "sts", "seeds": seeds}, _sentences,
                        corpus, encoder, _RECIPES[recipe], seeds, pairs,
                    )  # fmt: skip
    write_page(options.output, page(read_rows(path), options.output.name))


def _once(
    path: Path,
    corpus: Corpus,
    encoder: DendriticEncoder,
    recipe: str,
    settings: dict[str, Any],
    measure: Callable[..., Row],
    *arguments: Any,
) -> None:
    run = run_id(corpus.name, corpus.train.digest, encoder.fingerprint, recipe, settings)
    if find_row(run, path):
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


def other_cluster(
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
        tuned, stage = encoder, "NUDGE-N"
        if config is not None:
            tuned = finetune(encoder, train, dev, replace(config, seed=seed), index=index).encoder
            stage = NUDGED
        moved = mapped(index, tuned)
        if config is not None:
            after = evaluate(DenseRetriever(moved, tuned), others).per_query["ndcg@10"]
            changes.setdefault(HEAD, []).append(after - before)
        result = nudge_index(moved, tuned, train, dev)
        after = evaluate(DenseRetriever(moved, tuned), others).per_query["ndcg@10"]
        changes.setdefault(stage, []).append(after - before)
        own = _own(index, encoder, moved, tuned, corpus.test, mine)
    return {
        "questions": {"train": len(train), "dev": len(dev), "other": len(others)},
        "before": round(float(before.mean()), 5),
        "own_test_change": round(own, 5),
        "gamma": result.gamma,
        "per_seed": {
            stage: [round(float(change.mean()), 5) for change in found]
            for stage, found in changes.items()
        },
        "changes": {stage: in_steps(np.mean(found, axis=0)) for stage, found in changes.items()},
    }


def _own(
    before: Any,
    encoder: DendriticEncoder,
    after: Any,
    tuned: DendriticEncoder,
    test: RetrievalDataset,
    mine: set[str],
) -> float:
    """Return what the test questions of the fitted cluster gained."""
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
        "heads": config.resolved("questions").heads,
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
    seeds = f"{' or '.join(map(str, counts))} seeds for each recipe"
    return "\n".join(
        [
            _PAGE.format(file=file, seeds=seeds, loss=_LOSS),
            _clusters([row for row in rows if row["test"] == "cluster"]),
            '"Own cluster" is what the test questions of the fitted cluster gained after the last '
            "stage: last seed, in each direction.\n",
            _STS_PAGE.format(query=_FALL["query"], both=_FALL["shared"]),
            _falls([row for row in rows if row["test"] == "sts"]),
        ]
    )


def _clusters(rows: Sequence[Row]) -> str:
    lines = []
    for name, recipe in dict.fromkeys((row["set"], row["recipe"]) for row in rows):
        group = [row for row in rows if (row["set"], row["recipe"]) == (name, recipe)]
        for stage in group[0]["changes"]:
            changes = np.concatenate([row["changes"][stage] for row in group]) * STEP
            mean = float(changes.mean())
            last = stage == list(group[0]["changes"])[-1]
            own = ", ".join(f"{row['own_test_change']:+.3f}" for row in group)
            lines.append(
                [
                    name,
                    f"{recipe}: {stage}" if recipe != _NUDGE else _NUDGE,
                    str(len(group[0]["seeds"])),
                    signed((mean, mean_interval(changes, 0.95, 0))),
                    ", ".join(f"{np.mean(row['per_seed'][stage]):+.4f}" for row in group),
                    "yes" if mean >= -_LOSS else "no",
                    own if last else "–",
                ]
            )
    head = ["set", "recipe", "seeds", "change, other cluster", "per direction", "within"]
    return table([*head, "own cluster"], lines)


def _falls(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
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
                "yes" if fall <= _FALL[row["heads"]] else "no",
            ]
        )
    head = ["set", "recipe", "seeds", "before", "as queries", "as documents", "fall", "within"]
    return table(head, lines)


if __name__ == "__main__":
    main()
