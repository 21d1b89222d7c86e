"""The benchmarks of retrieval, small: rows that are kept, pages of them, folds without test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import choose, dendrites, gains, harm, retrieval, runs
from benchmarks.corpora import Corpus
from benchmarks.mlp import MLP, MLPEncoder, fit_mlp
from benchmarks.runs import HEAD, NUDGED, Bench
from nexus_integrations.training.config import FinetuneConfig
from nexus_integrations.training.heads import Heads
from nexus_integrations.training.prepare import prepare

LINEAR = FinetuneConfig(dendrites=0, epochs=2)


@pytest.fixture
def bench(clinic, clinic_encoder, tmp_path) -> Bench:
    """The demo corpus as a benchmark's."""
    train, dev, test = clinic
    corpus = Corpus(name="clinic", train=train, dev=dev, test=test)
    return Bench(corpus, clinic_encoder, tmp_path / "rows.jsonl")


def test_a_run_is_measured_once_and_its_page_says_the_row(bench, monkeypatch):
    """The second call reads the file; the gain on the page is the row's own."""
    bench.base()
    row = bench.finetuned("query, linear", LINEAR)
    monkeypatch.setattr(runs, "finetune", lambda *_: pytest.fail("measured again"))
    again = Bench(bench.corpus, bench.encoder, bench.path).finetuned("query, linear", LINEAR)
    assert again == row
    rows = [json.loads(line) for line in bench.path.read_text().splitlines()]
    assert [found["recipe"] for found in rows] == ["base", "query, linear"]
    base = rows[0]["test"]["base"]["ndcg@10"]
    page = retrieval.page(rows, "rows")
    assert f"| base | – | {base:.4f} |" in page
    gain = row["test"][NUDGED]["ndcg@10"] - base
    assert f"{gain:+.4f} (" in page
    assert bench.corpus.train.queries.keys().isdisjoint(bench.corpus.test.queries)


def test_rows_hold_no_text(bench):
    """Neither a question nor a passage is in the file."""
    bench.finetuned("query, linear", LINEAR)
    content = bench.path.read_text()
    for text in [*bench.corpus.test.queries.values(), *bench.corpus.train.corpus.values()]:
        assert text not in content


def test_differences_by_hand():
    """Two seeds of two questions against two others."""
    mine, theirs = (
        [
            {"seed": s, "test": {HEAD: {"ndcg@10": sum(v) / 2e4}}, "per_query": {HEAD: v}}
            for s, v in enumerate(values)
        ]
        for values in ([[10_000, 6_000], [8_000, 4_000]], [[5_000, 5_000], [3_000, 7_000]])
    )
    difference = gains.over_seeds(mine, theirs, HEAD)
    # Seeds: .8 − .5 and .6 − .5.
    assert difference.mean == pytest.approx(0.2)
    change, (low, high) = gains.over_questions(mine, HEAD, theirs, HEAD)
    # Questions: .9 − .4 and .5 − .6.
    assert change == pytest.approx(0.2)
    assert (low, high) == pytest.approx((-0.1, 0.5))


def test_of_equal_runs_the_one_that_was_alone_counts():
    """A run measured again replaces the one that others disturbed."""
    rows = [
        {"run": "a", "set": "s", "recipe": "r", "seed": 0, "alone": alone, "seconds": seconds}
        for alone, seconds in ((False, 9.0), (True, 3.0))
    ]
    assert [row["seconds"] for row in gains.grouped(rows)["s"]["r"]] == [3.0]


@pytest.mark.parametrize("by", ["query", "document"])
def test_no_fold_holds_a_test_question(bench, by):
    """Train, dev and fold are apart and come of train and dev alone; by document, documents too."""
    corpus = bench.corpus
    asked = [fold.test.queries.keys() for fold in choose.folds(corpus, 3, by)]
    assert set().union(*asked) == {*corpus.train.queries, *corpus.dev.queries}
    for fold in choose.folds(corpus, 3, by):
        parts = [set(part.queries) for part in (fold.train, fold.dev, fold.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        if by == "document":
            train, test = (
                {id_ for found in part.relevant_docs.values() for id_ in found}
                for part in (fold.train, fold.test)
            )
            assert not train & test


def test_settings_are_combined_and_named():
    """Words become the settings' types; an unknown one is named."""
    vary = [["anchor", "0.25", "1"], ["heads", "separate"], ["dendrites", "2"], ["refit", "True"]]
    configs = list(choose.combinations(vary))
    assert configs == [
        FinetuneConfig(anchor=anchor, heads="separate", dendrites=2, refit=True)
        for anchor in (0.25, 1.0)
    ]
    assert choose.varied(configs[0]) == "heads=separate, dendrites=2, anchor=0.25, refit=True"
    with pytest.raises(ValueError, match="no setting is called 'depth'"):
        list(choose.combinations([["depth", "3"]]))


def test_an_mlp_head_starts_as_nothing_and_learns(bench):
    """Untrained it changes no ranking; trained, dev rises; it has the parameters it should."""
    heads = Heads(384, "query")
    heads.first.layer = MLP(384, 768, torch.Generator().manual_seed(0))
    texts = list(bench.corpus.dev.queries.values())
    plain = bench.encoder.encode_queries(texts)
    encoded = MLPEncoder(bench.encoder, heads).encode_queries(texts)
    np.testing.assert_allclose(encoded, plain, atol=1e-6)
    corpus = bench.corpus
    objective = prepare(bench.encoder, corpus.train, corpus.dev, LINEAR, bench.index)
    fitted = fit_mlp(objective, replace(LINEAR, epochs=4), 768)
    assert fitted.parameters == 4 * 384 * 384
    assert fitted.score > objective.score(Heads(384, "query"))


def test_a_run_with_fewer_dendrites_is_the_beginning(bench):
    """Of three dendrites' history the epochs with one are those of a run with one."""
    whole = {
        "run": "w",
        "history": [[0, 0.5, 1.0], [1, 0.6, 2.5], [2, 0.55, 4.0]],
        "dendrites": 1,
        **dict.fromkeys(("dev", "dev_before", "best_epoch", "bytes", "gamma", "dev_nudged")),
        **dict.fromkeys(("nudge_seconds", "test", "per_query")),
    }
    row = dendrites.beginning(whole, 1)
    assert (row["epochs"], row["seconds"], row["beginning_of"]) == (2, 2.5, "w")


def test_the_other_cluster_is_asked_and_never_trained_on(bench):
    """Every question of the cluster that was not fitted is judged, and no other."""
    corpus, encoder = bench.corpus, bench.encoder
    rows = [harm.other_cluster(corpus, encoder, LINEAR, n, [0]) for n in (0, 1)]
    count = sum(len(part) for part in (corpus.train, corpus.dev, corpus.test))
    assert sum(row["questions"]["other"] for row in rows) == count
    for row in rows:
        assert len(row["changes"]["head + NUDGE-N"]) == row["questions"]["other"]
        mean = np.mean(row["changes"]["head"]) * 1e-4
        assert mean == pytest.approx(row["per_seed"]["head"][0], abs=1e-4)
