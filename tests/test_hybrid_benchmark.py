"""The benchmark of hybrid search: fusion as the frameworks do it, rows, and the page."""

import numpy as np
import pytest

from benchmarks.fusion import RankFusion
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
