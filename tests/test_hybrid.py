"""`HybridRetriever`: the sum of both scores, of what either side names."""

import math

import numpy as np
import pytest

pytest.importorskip("tantivy")

from conftest import ToyEncoder, unit

from nexus_integrations import HybridRetriever
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.evaluation import evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.retrievers import DenseRetriever

QUESTION = "red fish"
PASSAGES = {"near": "blue bird", "both": "red bird", "words": "red fish", "far": "green tree"}
VECTORS = {"near": (1.0, 0.0), "both": (0.8, 0.6), "words": (0.0, 1.0), "far": (-1.0, 0.0)}


def made(weight: float, *, metric: str = "cosine", lexical: LexicalIndex | None = None):
    encoder = ToyEncoder({QUESTION: (1, 0), "the of": (1, 0), "": (1, 0), "zzz": (1, 0)})
    index = MemoryIndex(list(VECTORS), np.stack([unit(*v) for v in VECTORS.values()]), metric)
    if lexical is None:
        lexical = LexicalIndex()
        lexical.fill(PASSAGES)
    return HybridRetriever(index, encoder, lexical, weight=weight)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_score_is_the_cosine_and_the_share_of_the_best_bm25(metric):
    """By hand: "words" has both terms, the best; "both" has "red", which two of four have.

    All passages have two terms and a pair, so a term's BM25 is its idf; that of the pair, which
    weighs 0.3, is that of "fish".
    """
    red, fish = math.log(1 + 2.5 / 2.5), math.log(1 + 3.5 / 1.5)
    best = red + fish + 0.3 * fish
    share = red / best
    (found,) = made(0.75, metric=metric).matches([QUESTION], 4)
    assert [match.id for match in found] == ["both", "near", "words", "far"]
    assert [match.score for match in found] == pytest.approx(
        [0.8 + 0.75 * share, 1, 0.75, -1], abs=1e-6
    )
    assert [match.share for match in found] == pytest.approx([share, 0, 1, 0], abs=1e-6)
    assert [match.similarity for match in found] == pytest.approx([0.8, 1, 0, -1], abs=1e-6)
    assert found[2].words == pytest.approx(best, rel=1e-6)


def test_search_is_what_matches_says():
    """Ids and scores, float32, best first."""
    hybrid = made(0.75)
    hits = hybrid.search([QUESTION], 2)
    (found,) = hybrid.matches([QUESTION], 2)
    assert hits.ids == [[match.id for match in found]] == [["both", "near"]]
    assert hits.similarities.tolist() == [[match.score for match in found]]
    assert hits.similarities.dtype == np.float32


def test_weight_zero_asks_no_words(monkeypatch):
    """It is the dense retriever, and the words are not touched."""
    hybrid = made(0)
    dense = DenseRetriever(hybrid.index, hybrid.encoder).search([QUESTION], 3)
    monkeypatch.setattr(hybrid.lexical, "search", None)
    hits = hybrid.search([QUESTION], 3)
    assert hits.ids == dense.ids == [["near", "both", "words"]]
    assert hits.similarities.tolist() == dense.similarities.tolist()


def test_an_infinite_weight_asks_no_vectors(monkeypatch):
    """Passages come by their words alone; nothing is encoded."""
    hybrid = made(math.inf)
    monkeypatch.setattr(hybrid.encoder, "encode_queries", None)
    (found,) = hybrid.matches([QUESTION], 4)
    assert [match.id for match in found] == ["words", "both"]
    assert found[0].score == 1
    assert math.isnan(found[0].similarity)


@pytest.mark.parametrize("text", ["the of", "", "zzz"])
def test_a_question_without_known_words_is_ranked_by_its_vector(text):
    """Stop words alone, nothing, and an unknown word."""
    assert made(0.75).search([text], 10).ids == [["near", "both", "words", "far"]]
    assert made(math.inf).search([text], 10).ids == [[]]


def test_ties_come_by_id():
    """Equal cosines and equal words."""
    encoder = ToyEncoder({"q": (1, 0)})
    index = MemoryIndex(["b", "a", "c"], np.stack([unit(1, 1)] * 3))
    words = LexicalIndex()
    words.add(["c", "b", "a"], ["q", "q", "q"])
    assert HybridRetriever(index, encoder, words, weight=1).search(["q"], 3).ids == [
        ["a", "b", "c"]
    ]


@pytest.mark.parametrize("weight", [0.05, 0.4, 1.0, 5.0])
@pytest.mark.parametrize("approximate", [False, True])
def test_what_is_left_out_never_belonged_to_the_best(weight, approximate, monkeypatch):
    """Against every passage scored on both sides, for questions of many kinds."""
    draw = np.random.default_rng(0)
    vocabulary = [f"term{n}" for n in range(60)]
    share = 1 / np.arange(1, 61)
    texts = {
        f"p{n}": " ".join(draw.choice(vocabulary, 12, p=share / share.sum())) for n in range(900)
    }
    vectors = draw.normal(size=(900, 6)).astype(np.float32)
    questions = {" ".join(draw.choice(vocabulary, 3)): draw.normal(size=6) for _ in range(25)}
    index = MemoryIndex(list(texts), vectors)
    monkeypatch.setattr(MemoryIndex, "approximate", approximate)
    words = LexicalIndex()
    words.fill(texts)
    encoder = ToyEncoder(questions)
    hybrid = HybridRetriever(index, encoder, words, weight=weight)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for text, found in zip(questions, hybrid.matches(list(questions), 10), strict=True):
        bm25 = words.scores([text], [list(texts)])[0]
        scores = units @ encoder.table[text] + weight * bm25 / bm25.max()
        best = np.sort(scores)[::-1][:10]
        assert [match.score for match in found] == pytest.approx(best.tolist(), abs=1e-5)
        for match in found:
            assert match.score == pytest.approx(scores[list(texts).index(match.id)], abs=1e-5)


def test_passages_of_one_side_alone():
    """Both sides answer; one that the index lacks does not come back, and all are counted."""
    words = LexicalIndex()
    words.add(["words", "gone", "both"], ["red fish", "red fish red fish", "red bird"])
    hybrid = made(0.75, lexical=words)
    assert hybrid.search([QUESTION], 10).ids == [["near", "both", "words", "far"]]
    assert made(math.inf, lexical=words).search([QUESTION], 10).ids == [["words", "both"]]
    assert hybrid.coverage() == (2, 2, 1)


class Without(MemoryIndex):
    """A view without some passages, as a store's filter makes it."""


@pytest.mark.parametrize("weight", [0.75, math.inf])
def test_a_view_keeps_out_what_it_does_not_hold(weight):
    """However well its words fit; the search goes deeper until what is allowed is found."""
    count = 1500
    ids = [f"p{n:04}" for n in range(count)]
    vectors = np.stack([unit(1, n / count) for n in range(count)])
    words = LexicalIndex()
    words.add(ids, ["fish"] * (count - 1) + ["fish with much other text beside it, long and weak"])
    whole = HybridRetriever(
        MemoryIndex(ids, vectors), ToyEncoder({"fish": (1, 0)}), words, weight=weight
    )
    view = MemoryIndex([ids[-1], ids[-2]], vectors[[-1, -2]])
    assert whole.within(view).search(["fish"], 2).ids == [[ids[-2], ids[-1]]]
    assert len(whole.search(["fish"], 5).ids[0]) == 5


def test_what_does_not_fit_is_refused():
    """A weight below 0 or nan, k below 1, an encoder of another size, another corpus."""
    for weight in (-0.1, math.nan):
        with pytest.raises(ValueError, match="weight must be at least 0"):
            made(weight)
    with pytest.raises(ValueError, match="k must be at least 1"):
        made(0.75).search([QUESTION], 0)
    other = LexicalIndex()
    other.add(["x", "y"], ["red", "fish"])
    with pytest.raises(ValueError, match=r"none of 2 passages .* words of another corpus"):
        made(0.75, lexical=other)
    hybrid = made(0.75)
    with pytest.raises(ValueError, match="dimension 3"):
        HybridRetriever(hybrid.index, ToyEncoder({"q": (1, 0, 0)}), hybrid.lexical, weight=0.5)


def test_evaluate_takes_it():
    """The evaluation counts the index's documents."""
    data = RetrievalDataset(queries={"q": QUESTION}, corpus=PASSAGES, relevant_docs={"q": ["both"]})
    result = evaluate(made(0.75), data)
    assert result.metrics["recall@1"] == 1
    assert result.documents == 4


def test_no_questions():
    """An empty list of texts has empty hits."""
    assert made(math.inf).search([], 3).ids == []
