"""The benchmark of hybrid search: fusion as the frameworks do it, rows, and the page."""

import numpy as np
import pytest

from benchmarks import hybrid_page
from benchmarks.bm25 import PlainBM25
from benchmarks.corpora import Corpus
from benchmarks.fusion import RankFusion
from benchmarks.hybrid import HybridBench
from benchmarks.record import read_rows
from nexus_integrations.protocols import Hits

FIRST = ["a", "b", "c", "d"]
SECOND = ["c", "e", "a", "f"]


class Listed:
    """A retriever that always finds the same ids."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    def search(self, texts, k):
        ids = self.ids[:k]
        return Hits([ids] * len(texts), np.zeros((len(texts), len(ids)), dtype=np.float32))


def test_fusion_by_hand():
    """From rank 0: a has 1/60 + 1/62, c 1/62 + 1/60, which came later; then b and e, 1/61 each."""
    hits = RankFusion([Listed(FIRST), Listed(SECOND)], "LlamaIndex", 4).search(["q"], 4)
    assert hits.ids == [["a", "c", "b", "e"]]
    np.testing.assert_allclose(hits.similarities[0, :2], 1 / 60 + 1 / 62, rtol=1e-6)
    np.testing.assert_allclose(hits.similarities[0, 2:], 1 / 61, rtol=1e-6)


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST), (["a"], ["b", "a", "c"])])
def test_fusion_as_llama_index(order):
    """`QueryFusionRetriever` finds the same passages with the same scores."""
    core = pytest.importorskip("llama_index.core")
    from llama_index.core.llms import MockLLM
    from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    class Fixed(BaseRetriever):
        def __init__(self, ids):
            super().__init__()
            self._ids = ids

        def _retrieve(self, query_bundle):
            nodes = [TextNode(id_=id_, text=f"text {id_}") for id_ in self._ids]
            return [NodeWithScore(node=node, score=1 / (1 + n)) for n, node in enumerate(nodes)]

    peer = QueryFusionRetriever(
        [Fixed(ids) for ids in order],
        llm=MockLLM(),
        mode="reciprocal_rerank",
        similarity_top_k=3,
        num_queries=1,
        use_async=False,
    )
    found = peer.retrieve(core.QueryBundle("q"))
    ours = RankFusion([Listed(ids) for ids in order], "LlamaIndex", 4).search(["q"], 3)
    assert ours.ids == [[node.node_id for node in found]]
    np.testing.assert_allclose(ours.similarities[0], [node.score for node in found], rtol=1e-6)


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST), (["a"], ["b", "a", "c"])])
def test_fusion_as_langchain(order):
    """`EnsembleRetriever` with its default weights ranks the same passages in the same order."""
    pytest.importorskip("langchain_classic")
    from langchain_classic.retrievers import EnsembleRetriever
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Fixed(BaseRetriever):
        ids: list[str]

        def _get_relevant_documents(self, query, *, run_manager):
            return [Document(page_content=id_, id=id_) for id_ in self.ids]

    found = EnsembleRetriever(retrievers=[Fixed(ids=ids) for ids in order]).invoke("q")
    ours = RankFusion([Listed(ids) for ids in order], "LangChain", 4).search(["q"], 10)
    assert ours.ids == [[document.id for document in found]]


@pytest.fixture
def bench(clinic, clinic_encoder, tmp_path):
    """The demo corpus as the benchmark's."""
    train, dev, test = clinic
    corpus = Corpus(name="clinic", train=train, dev=dev, test=test)
    return HybridBench(corpus, clinic_encoder, tmp_path / "rows.jsonl")


def test_peers_are_measured_once_and_the_page_says_their_rows(bench, tmp_path):
    """The page has a line for each system, with the row's value; rows hold no text."""
    systems = [*hybrid_page.PEERS, hybrid_page.OWN, hybrid_page.LEARNED]
    for system in systems:
        row = bench.run(system, None)
        assert bench.run(system, None) == row
    rows = read_rows(bench.path)
    assert [row["recipe"] for row in rows] == systems
    page = hybrid_page.page(rows, "rows")
    for row in rows:
        value = row["test"][row["recipe"]]["ndcg@10"]
        assert f"| clinic | {row['recipe']} | {value:.4f} |" in page
    hybrid_page.draw(rows, tmp_path / "rows.svg")
    assert (tmp_path / "rows.svg").read_text().startswith("<?xml")
    content = bench.path.read_text()
    for text in [*bench.corpus.test.queries.values(), *bench.corpus.train.corpus.values()]:
        assert text not in content


def test_words_learn_from_train_and_dev_alone(bench):
    """No test question is among the questions that passages learned."""
    words = bench.learned_words()
    assert words.learned == {*bench.corpus.train.queries, *bench.corpus.dev.queries}
    assert words.learned.isdisjoint(bench.corpus.test.queries)


def test_plain_bm25_by_hand():
    """Of two passages with the word the shorter is first; one without it is not found."""
    corpus = {"long": "visitors and many other words", "short": "visitor", "none": "a door"}
    found = PlainBM25(corpus, "english").search(["Who visits: visitors?"], 3)
    assert found.ids == [["short", "long"]]
