"""Metrics by hand, intervals, comparison."""

import json
from math import log2

import numpy as np
import pytest
from scipy.stats import binom

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    mean_interval,
    score_rankings,
)
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.protocols import Hits
from nexus_integrations.retrievers import DenseRetriever

RUNS = {"q1": ["a", "b", "c"], "q2": ["c", "b", "a"], "q3": ["b", "c", "a"]}
RELEVANT = {"q1": ["a"], "q2": ["a", "b"], "q3": ["d"]}
# q1: hit at rank 1. q2: hits at ranks 2 and 3 of two relevant. q3: no hit.
GAIN_2 = (1 / log2(3) + 1 / log2(4)) / (1 + 1 / log2(3))


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("ndcg@10", [1, GAIN_2, 0]),
        ("ndcg@2", [1, (1 / log2(3)) / (1 + 1 / log2(3)), 0]),
        ("ndcg@1", [1, 0, 0]),
        ("mrr@10", [1, 1 / 2, 0]),
        ("mrr@1", [1, 0, 0]),
        ("recall@1", [1, 0, 0]),
        ("recall@2", [1, 1 / 2, 0]),
        ("recall@3", [1, 1, 0]),
        ("recall@10", [1, 1, 0]),
        ("precision@2", [1 / 2, 1 / 2, 0]),
        ("precision@10", [1 / 10, 2 / 10, 0]),
    ],
)
def test_metrics_by_hand(metric, values):
    """Three queries, one with a hit at once, one with two late hits, one with none."""
    scores = score_rankings(RUNS, RELEVANT, [metric])
    np.testing.assert_allclose(scores[metric], values, atol=1e-12)


def evaluated(index, encoder, dataset, **options):
    """Evaluate vectors alone."""
    return evaluate(DenseRetriever(index, encoder), dataset, **options)


def test_recall_counts_over_what_could_be_found():
    """One place and three relevant: the hit in it is all that recall@1 asks, 1/min(1, 3)."""
    scores = score_rankings({"q": ["a", "b"]}, {"q": ["a", "c", "d"]}, ["recall@1", "recall@2"])
    assert scores["recall@1"] == [1]
    assert scores["recall@2"] == [1 / 2]


def test_ranks_are_kept_where_ids_would_sort_otherwise():
    """Two hundred documents in falling id order: the last has rank 200, whatever its id."""
    ranked = [f"d{number:03}" for number in range(200)]
    for run in (ranked, ranked[::-1]):
        scores = score_rankings({"q": run}, {"q": [run[-1]]}, ["mrr@200"])
        assert scores["mrr@200"][0] == pytest.approx(1 / 200)


@pytest.fixture
def compass(toy):
    """Three documents around the compass, three questions, and who answers them."""
    encoder = toy(
        {"to the east": (3, 1), "to the north": (1, 3), "eastern": (1, 0.1), "far": (-1, -1)}
    )
    index = MemoryIndex(["e", "n", "w"], np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32))
    dataset = RetrievalDataset(
        queries={"q1": "to the east", "q2": "to the north", "q3": "eastern"},
        corpus={"e": "east", "n": "north", "w": "west"},
        relevant_docs={"q1": ["e"], "q2": ["n"], "q3": ["n", "w"]},
    )
    return index, encoder, dataset


def test_evaluate_means_over_queries(compass):
    """q1 and q2 hit at rank 1; q3 finds n at rank 2 and w at rank 3, so MRR is (1 + 1 + ½)/3."""
    result = evaluated(*compass, metrics=["mrr@10", "recall@1", "ndcg@10"])
    assert result.query_ids == ["q1", "q2", "q3"]
    assert result.metrics["mrr@10"] == pytest.approx(2.5 / 3)
    assert result.metrics["recall@1"] == pytest.approx(2 / 3)
    assert result.metrics["ndcg@10"] == pytest.approx((2 + GAIN_2) / 3)
    np.testing.assert_allclose(result.per_query["mrr@10"], [1, 1, 1 / 2])


def test_evaluate_keeps_what_a_report_shows(compass):
    """The ranked lists, what answers, the counts, and hashes that tell model and questions."""
    index, encoder, dataset = compass
    result = evaluate(DenseRetriever(index, encoder), dataset)
    # "to the east" is (3, 1)/√10: its cosines with e, n and w are its coordinates.
    assert result.hits.ids[0] == ["e", "n", "w"]
    np.testing.assert_allclose(
        result.hits.similarities[0], np.array([3, 1, -3]) / np.sqrt(10), atol=1e-6
    )
    assert result.relevant == [["e"], ["n"], ["n", "w"]]
    assert (result.documents, result.fingerprint) == (3, encoder.fingerprint)
    other = evaluate(DenseRetriever(index, encoder), dataset.subset(["q1", "q2"]))
    assert len(result.questions_sha256) == 64
    assert result.questions_sha256 != other.questions_sha256
    assert result.questions_sha256 == evaluated(*compass).questions_sha256


def test_batches_of_unequal_width_are_joined(compass, monkeypatch):
    """An approximate search that finds less for one batch of queries fills its row up."""
    index, encoder, dataset = compass
    monkeypatch.setattr("nexus_integrations.retrievers.dense._BATCH", 1)
    search, widths = index.search, iter([3, 1, 2])
    monkeypatch.setattr(index, "search", lambda queries, k: search(queries, next(widths)))
    hits = evaluate(DenseRetriever(index, encoder), dataset).hits
    assert [len(ids) for ids in hits.ids] == [3, 1, 2]
    assert np.isneginf(hits.similarities).sum(axis=1).tolist() == [0, 2, 1]


def test_evaluate_in_batches_of_queries(compass, monkeypatch):
    """Searching one query at a time gives what searching all at once gives."""
    whole = evaluated(*compass)
    monkeypatch.setattr("nexus_integrations.retrievers.dense._BATCH", 1)
    assert evaluated(*compass).metrics == whole.metrics


def test_interval_holds_the_mean_and_is_reproducible(compass):
    """The interval is around the mean, the same for a seed, and wider at more confidence."""
    first = evaluated(*compass, metrics=["mrr@10"], seed=3)
    low, high = first.intervals["mrr@10"]
    assert low < first.metrics["mrr@10"] < high
    # Of three values 1, 1, ½ a resample's mean lies in ½ … 1.
    assert 0.5 <= low < high <= 1
    assert evaluated(*compass, metrics=["mrr@10"], seed=3).intervals == first.intervals
    narrow = evaluated(*compass, metrics=["mrr@10"], confidence=0.5, seed=3).intervals["mrr@10"]
    assert narrow[1] - narrow[0] < high - low


def test_interval_of_equal_values_is_their_value(compass):
    """Where every query scores 1 there is nothing to resample."""
    index, encoder, dataset = compass
    result = evaluate(
        DenseRetriever(index, encoder), dataset.subset(["q1", "q2"]), metrics=["mrr@10"]
    )
    assert result.intervals["mrr@10"] == (1, 1)


def test_interval_matches_the_normal_one():
    """With 400 values of 0 and 1, half each, the interval is ½ ± 1.96·½/√400 within .01."""
    ones = {f"q{row}": ["a"] if row % 2 else ["b"] for row in range(400)}
    scores = score_rankings(ones, {query: ["a"] for query in ones}, ["recall@1"])["recall@1"]
    zero = Evaluation(
        metrics={}, intervals={}, confidence=0.95, query_ids=[], per_query={"m": scores * 0}
    )
    after = Evaluation(
        metrics={}, intervals={}, confidence=0.95, query_ids=[], per_query={"m": scores}
    )
    assert compare(zero, after).intervals["m"] == pytest.approx((0.451, 0.549), abs=0.01)


@pytest.mark.parametrize("ones", [30, 1_500, 2_950])
def test_interval_of_many_values_is_that_of_their_resamples(ones):
    """The resampled mean of 3,000 values, so many of them 1, is a binomial share, skewed or not."""
    values = np.zeros(3_000)
    values[:ones] = 1
    resampled = binom(3_000, ones / 3_000)
    for confidence in (0.5, 0.95):
        bounds = np.array(mean_interval(values, confidence, seed=0)) * 3_000
        np.testing.assert_allclose(bounds, resampled.interval(confidence), atol=1)


def test_interval_of_many_values_continues_that_of_few():
    """On either side of 2,000 values, drawn or not, bounds differ by a tenth of the spread."""
    values = np.where(np.arange(2_001) % 10 == 0, np.linspace(-0.5, 1, 2_001), 0)
    spread = values.std() / np.sqrt(2_000)
    np.testing.assert_allclose(
        mean_interval(values, 0.95, seed=0),
        np.array(mean_interval(values[1:], 0.95, seed=0)) + values.mean() - values[1:].mean(),
        atol=spread / 10,
    )


def make_evaluation(values: list[float], queries: str = "abcd", metric: str = "m") -> Evaluation:
    per_query = {metric: np.array(values)}
    return Evaluation(
        metrics={metric: float(np.mean(values))},
        intervals={metric: (0, 1)},
        confidence=0.9,
        query_ids=list(queries),
        per_query=per_query,
    )


def test_compare_counts_wins_losses_and_ties():
    """After minus before: +.5, −.25, 0, +.25 is two wins, a loss, a tie, and .125 on average."""
    before = make_evaluation([0.25, 0.5, 0.5, 0.75])
    after = make_evaluation([0.75, 0.25, 0.5, 1.0])
    result = compare(before, after)
    assert (result.wins["m"], result.losses["m"], result.ties["m"]) == (2, 1, 1)
    assert result.differences["m"] == pytest.approx(0.125)
    assert result.confidence == 0.9
    low, high = result.intervals["m"]
    assert -0.25 <= low < 0.125 < high <= 0.5
    assert compare(before, after).intervals == result.intervals


@pytest.mark.parametrize("other", [{"queries": "abce"}, {"metric": "n"}, {"queries": "abdc"}])
def test_compare_refuses_what_is_not_paired(other):
    """Other queries, the same in another order, or another metric cannot be paired."""
    values = [0.0, 0.5, 0.5, 1.0]
    with pytest.raises(ValueError, match="not of the same queries and metrics"):
        compare(make_evaluation(values), make_evaluation(values, **other))


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@0", "map@10", "recall@1.5", " mrr@10", "mrr@-1"])
def test_unknown_metric_is_refused(compass, metric):
    """A metric that is not one of the four at a depth of one or more is named."""
    with pytest.raises(ValueError, match="unknown metric"):
        evaluated(*compass, metrics=["ndcg@10", metric])


def test_relevant_document_missing_in_the_index_is_named(compass):
    """The error names query and document, and how many are missing."""
    _, encoder, dataset = compass
    index = MemoryIndex(["e", "n"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"'w', relevant to query 'q3'.*\(1 such documents\)"):
        evaluate(DenseRetriever(index, encoder), dataset)


def test_encoder_of_another_dimension_is_refused(compass, toy):
    """An encoder of dimension 3 cannot search an index of dimension 2."""
    index, _, dataset = compass
    with pytest.raises(ValueError, match=r"dimension 3, the index holds 2"):
        evaluate(DenseRetriever(index, toy({"a": (1, 0, 0)})), dataset)


def test_repr_holds_no_query(compass):
    """What ends up in logs has numbers, not queries."""
    text = repr(evaluated(*compass))
    assert "q1" not in text
    assert "ndcg@10" in text


def test_a_function_is_a_retriever(compass):
    """Ranked ids by hand: a hit at rank 1, a hit at rank 2, and none; a repeat counts once."""
    _, _, dataset = compass
    found = {"to the east": ["e"], "to the north": ["e", "e", "n"], "eastern": ["e"]}
    result = evaluate(lambda texts, k: [found[text] for text in texts], dataset, metrics=["mrr@2"])
    assert result.per_query["mrr@2"].tolist() == [1, 1 / 2, 0]
    assert result.hits.ids[1] == ["e", "n"]
    assert (result.documents, result.fingerprint, result.first) == (0, "", 1)
    with pytest.raises(ValueError, match="returned 1 rankings for 3 questions"):
        evaluate(lambda texts, k: [["e"]], dataset)
    with pytest.raises(TypeError, match="a str cannot search"):
        evaluate("index", dataset)


def test_a_retriever_takes_what_has_an_encoder(compass):
    """An embedding model of a framework holds its encoder."""
    index, encoder, dataset = compass

    class Model:
        def __init__(self):
            self.encoder = encoder

    result = evaluated(index, Model(), dataset)
    assert result.metrics == evaluated(*compass).metrics
    assert result.fingerprint == encoder.fingerprint
    with pytest.raises(TypeError, match="a str is no encoder"):
        DenseRetriever(index, "model")


def test_questions_that_were_trained_on_are_counted(compass):
    """Of three questions one was trained on word for word; unknown is not none."""
    result = evaluated(*compass, trained_on=compass[2].subset(["q1"]))
    assert result.repeated == 1
    assert "1 of them nearly repeat a training question" in str(result)
    assert evaluated(*compass).repeated is None


def test_an_evaluation_comes_back_as_it_was(compass, tmp_path):
    """Saved and loaded, with lists of unequal length, with and without similarities."""
    index, encoder, dataset = compass
    ragged = evaluate(
        lambda texts, k: Hits([["e", "n"], ["n"], []], np.array([[1, 0.1], [1, -np.inf]] * 2)[:3]),
        dataset,
    )
    ranked = evaluate(lambda texts, k: [["e"], ["n", "w"], []], dataset)
    for result in (evaluated(index, encoder, dataset), ragged, ranked):
        result.save(tmp_path / "e.json")
        again = Evaluation.load(tmp_path / "e.json")
        assert str(again) == str(result)
        assert again.hits.ids == result.hits.ids
        finite = np.isfinite(result.hits.similarities)
        np.testing.assert_array_equal(np.isfinite(again.hits.similarities), finite)
        np.testing.assert_array_equal(
            again.hits.similarities[finite], result.hits.similarities[finite].astype(np.float32)
        )
        assert compare(result, again).differences["mrr@10"] == 0
        json.loads((tmp_path / "e.json").read_text(), parse_constant=pytest.fail)
    change = compare(ranked, evaluated(index, encoder, dataset))
    change.save(tmp_path / "c.json")
    assert Comparison.load(tmp_path / "c.json") == change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"ndcg@10": "CANARY"}}, "its field 'metrics'"),
        ({"metrics": "CANARY"}, "its field 'metrics'"),
        ({"hits": {"ids": [["CANARY"]]}}, "its field 'hits'"),
        ({"per_query": {"CANARY": ["CANARY"]}}, "its field 'per_query'"),
        ({"query_ids": ["CANARY", 1]}, "its field 'query_ids'"),
        ({"query_ids": ["CANARY"]}, "of different questions"),
        ({"intervals": {"CANARY": [0, 1]}}, "of different questions or metrics"),
        ({"documents": "CANARY"}, "its field 'documents'"),
    ],
)
def test_a_damaged_evaluation_shows_nothing_of_itself(compass, tmp_path, change, message):
    """The error names the file and the field, never what stands there."""
    content = evaluated(*compass).to_json() | change
    (tmp_path / "e.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        Evaluation.load(tmp_path / "e.json")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n  CANARY", "not valid JSON: Expecting value, line 2, column 3"),
        (b'{"metrics": "CANARY', "not valid JSON: .*line 1, column 13"),
        (b"CANARY \xff", "not UTF-8 .byte 7."),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "its field 'metrics'"),
    ],
)
def test_what_is_no_evaluation_shows_nothing_of_itself(tmp_path, content, message):
    """Another file given by mistake: its place is told, its text is not."""
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Evaluation.load(tmp_path / "e.json")
    assert "CANARY" not in str(caught.value)


def test_results_print_as_a_few_lines(compass):
    """A table with intervals, and how often the right passage came first: q1, q2 of three."""
    result = evaluated(*compass)
    lines = str(result).splitlines()
    assert lines[0] == "3 questions, 3 documents"
    assert lines[2].startswith("ndcg@10")
    assert lines[-1] == "The right passage came first for 2 of 3 questions."
    before = evaluate(lambda texts, k: [["e"], ["e"], ["e"]], compass[2])
    text = str(compare(before, result))
    assert text.endswith("came first for 2 of 3 questions, before for 1.")
    assert len(text.splitlines()) == 7
