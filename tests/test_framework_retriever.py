"""`evaluate` over the frameworks' own retrievers and pipelines."""

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import TextNode

from nexus_integrations import NudgeConfig, RetrievalDataset, compare, evaluate
from nexus_integrations.langchain import NexusEmbeddings
from nexus_integrations.llama_index import NexusEmbedding, NudgePostprocessor, open_index
from nexus_integrations.retrievers import DenseRetriever, FrameworkRetriever


@pytest.fixture
def encoder(table_encoder):
    """Three passages on axes; one question near the first, one near the second."""
    return table_encoder(
        {
            "first": (1, 0, 0),
            "second": (0, 1, 0),
            "third": (0, 0, 1),
            "one?": (0.8, 0.6, 0),
            "two?": (0.6, 0.8, 0),
        }
    )


@pytest.fixture
def dataset():
    """Both questions are answered by the second passage."""
    return RetrievalDataset(
        queries={"q1": "one?", "q2": "two?"},
        corpus={"a": "first", "b": "second", "c": "third"},
        relevant_docs={"q1": ["b"], "q2": ["b"]},
    )


@pytest.fixture
def index(encoder, dataset):
    """The passages in LlamaIndex's own index."""
    nodes = [TextNode(id_=id_, text=text) for id_, text in dataset.corpus.items()]
    return VectorStoreIndex(nodes, embed_model=NexusEmbedding.from_encoder(encoder))


def test_retrievers_of_both_frameworks(encoder, dataset, index):
    """Each ranks the answer second for one question and first for the other, as ours does."""
    store = InMemoryVectorStore(NexusEmbeddings.from_encoder(encoder))
    store.add_documents([Document(id=i, page_content=t) for i, t in dataset.corpus.items()])
    retriever = index.as_retriever(similarity_top_k=3)
    fusion = QueryFusionRetriever([retriever], llm=MockLLM(), num_queries=1, similarity_top_k=3)
    ours = DenseRetriever(open_index(index), encoder)
    for each in (ours, retriever, fusion, store.as_retriever(search_kwargs={"k": 3})):
        found = evaluate(each, dataset, metrics=["mrr@3"])
        assert found.metrics["mrr@3"] == pytest.approx((1 / 2 + 1) / 2)
        assert found.hits.ids == [["a", "b", "c"], ["b", "a", "c"]]


def test_a_whole_pipeline_is_measured(dataset, index):
    """A query engine counts with its postprocessors, and compares with the retriever alone."""
    embed_model = index._embed_model
    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=1.0))
    nudge.apply()
    retriever = index.as_retriever(similarity_top_k=3)
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=3,
        node_postprocessors=[nudge, SimilarityPostprocessor(similarity_cutoff=0.1)],
    )
    before = evaluate(retriever, dataset, metrics=["mrr@2"])
    after = evaluate(engine, dataset, metrics=["mrr@2"])
    assert compare(before, after).differences["mrr@2"] == pytest.approx(1 / 4)
    assert after.hits.ids == [["b", "a"], ["b", "a"]]  # the third passage is cut off


def test_a_runnable_that_returns_documents(dataset):
    """A function in LCEL; a document that it returns twice counts once."""
    documents = [Document(id=id_, page_content="") for id_ in "bab"]
    found = evaluate(RunnableLambda(lambda question: documents), dataset, metrics=["mrr@2"])
    assert found.hits.ids == [["b", "a"], ["b", "a"]]


def test_what_cannot_be_measured(dataset, index):
    """A chain that answers in words, documents without ids, and too few passages are told."""
    with pytest.raises(TypeError, match="returned a str, expected a list of nodes or documents"):
        evaluate(RunnableLambda(lambda question: "an answer"), dataset)
    with pytest.raises(ValueError, match="returned a Document without an id"):
        evaluate(RunnableLambda(lambda question: [Document("text")]), dataset)
    with pytest.warns(UserWarning, match="at most 2 passages per question, 3 were asked for"):
        evaluate(index.as_retriever(), dataset, metrics=["mrr@3"])
    with pytest.raises(TypeError, match="a dict is no retriever"):
        FrameworkRetriever({})
