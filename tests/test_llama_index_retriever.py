"""NexusRetriever in LlamaIndex: both scores, metadata filters on both sides, and its own tools."""

import asyncio
import math
import pickle

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from test_index_contract import postgres_uri  # noqa: F401
from test_llama_index_stores import (
    ChromaStore,
    FaissStore,
    LanceStore,
    PostgresStore,
    QdrantStore,
    SimpleStore,
    TableEmbedding,
    axis,
    id_of,
    store_of,  # noqa: F401
)

from nexus_integrations import FinetuneConfig, RetrievalDataset, evaluate
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.llama_index import (
    NexusEmbedding,
    NexusRetriever,
    dataset_from_nodes,
    index_words,
)
from nexus_integrations.tuning import TuneConfig

SECRETS = [f"alpha budget of ministry {number}" for number in range(130)]
# The question's vector is that of the weather; its words are those of the secrets, and, one of
# them, of the team.
TABLE = {
    "weather report": axis(0),
    "alpha team lunch": axis(1),
    **{text: axis(2) + row / 500 * axis(3, 4) for row, text in enumerate(SECRETS)},
    "alpha budget": axis(0),
}
PUBLIC = {"weather report", "alpha team lunch"}

FILTERING = {
    "simple": SimpleStore,
    "chroma": ChromaStore,
    "qdrant": QdrantStore,
    "lancedb": LanceStore,
    "postgres": PostgresStore,
}


def nodes() -> list[TextNode]:
    """The passages, each with the group that may read it."""
    return [
        TextNode(
            id_=id_of(text),
            text=text,
            metadata={"group": "public" if text in PUBLIC else "secret", "page": 7},
            excluded_embed_metadata_keys=["group", "page"],
        )
        for text in TABLE
        if text != "alpha budget"
    ]


def only(group: str) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="group", value=group)])


def either() -> MetadataFilters:
    """Alternatives, of which a store must not take the ids asked for to be one."""
    return MetadataFilters(
        filters=[
            MetadataFilter(key="group", value="public"),
            MetadataFilter(key="group", value=["nobody"], operator=FilterOperator.IN),
        ],
        condition=FilterCondition.OR,
    )


def texts(retriever, question: str = "alpha budget") -> list[str]:
    return [found.text for found in retriever.retrieve(question)]


@pytest.fixture
def simple():
    """An index in memory, and the words of its nodes."""
    index = VectorStoreIndex(nodes(), embed_model=TableEmbedding(TABLE))
    return index, index_words(index)


def test_both_scores(simple):
    """Cosine plus weight times BM25 over the best BM25; one side alone at 0 and at infinity."""
    index, words = simple
    found = NexusRetriever(index, words, weight=0.5, similarity_top_k=3).retrieve("alpha budget")
    # The weather has cosine 1 and no word; a secret cosine 0 and the best BM25.
    assert found[0].text == "weather report"
    assert [node.score for node in found] == pytest.approx([1.0, 0.5, 0.5])
    assert found[1].text in SECRETS
    assert texts(NexusRetriever(index, words, weight=0, similarity_top_k=1)) == ["weather report"]
    by_words = NexusRetriever(index, words, weight=math.inf, similarity_top_k=200).retrieve("team")
    assert [(node.text, node.score) for node in by_words] == [("alpha team lunch", 1.0)]


@pytest.mark.parametrize("kind", FILTERING.values(), ids=FILTERING)
@pytest.mark.parametrize("weight", [0.0, 2.0, math.inf])
@pytest.mark.parametrize("filters", [only("public"), either()], ids=["one", "either"])
def test_a_filter_never_leaks(kind, store_of, weight, filters):  # noqa: F811
    """130 passages of another group fit every word: none comes back, and the fitting one does."""
    index = store_of(kind).fill(nodes(), TableEmbedding(TABLE))
    words = index_words(index)
    assert len(words) == 132
    retriever = NexusRetriever(index, words, weight=weight, similarity_top_k=5, filters=filters)
    found = texts(retriever)
    assert set(found) == ({"alpha team lunch"} if weight == math.inf else PUBLIC)
    retriever.filters = only("secret")
    assert len(set(texts(retriever)) & set(SECRETS)) == 5
    retriever.filters = only("nobody")
    assert texts(retriever) == []
    retriever.filters = MetadataFilters(filters=[])  # none
    assert len(texts(retriever)) == 5


def test_a_store_without_filters_refuses(store_of):  # noqa: F811
    """FAISS has none; without a filter it is searched as any."""
    index = store_of(FaissStore).fill(nodes(), TableEmbedding(TABLE))
    words = index_words(index)
    assert texts(NexusRetriever(index, words, similarity_top_k=1, weight=0.1)) == ["weather report"]
    with pytest.raises(NotImplementedError, match="not a FaissVectorStore: leave `filters` out"):
        NexusRetriever(index, words, filters=only("public")).retrieve("alpha budget")


async def test_async_and_concurrent(simple):
    """`aretrieve` gives what `retrieve` gives, also many at a time."""
    index, words = simple
    retriever = NexusRetriever(index, words, similarity_top_k=3)
    expected = retriever.retrieve("alpha budget")
    found = await asyncio.gather(*[retriever.aretrieve("alpha budget") for _ in range(8)])
    assert all(each == expected for each in found)


def test_where_llama_index_takes_a_retriever(simple):
    """A query engine, fusion with another retriever, a tool of an agent, and `evaluate`."""
    index, words = simple
    retriever = NexusRetriever(index, words, similarity_top_k=3)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert engine.query("alpha budget").source_nodes[0].node.metadata["page"] == 7
    fusion = QueryFusionRetriever(
        [retriever, index.as_retriever(similarity_top_k=3)],
        llm=MockLLM(),
        num_queries=1,
        use_async=False,
        similarity_top_k=2,
    )
    assert set(texts(fusion)) & set(SECRETS)
    tool = RetrieverTool.from_defaults(retriever)
    assert "alpha" in tool.call("alpha budget").content
    asked = RetrievalDataset(
        queries={"q": "team lunch"},
        corpus={node.node_id: node.get_content(MetadataMode.EMBED) for node in nodes()},
        relevant_docs={"q": [id_of("alpha team lunch")]},
    )
    words_alone = NexusRetriever(index, words, weight=math.inf, similarity_top_k=10)
    assert evaluate(words_alone, asked, metrics=["mrr@1"]).metrics["mrr@1"] == 1


def test_pickle(simple, tmp_path):
    """A retriever over a store and a folder of words travels; words in memory do not."""
    index, words = simple
    folder = index_words(index, tmp_path / "words", language="english").folder
    retriever = NexusRetriever(index, folder, similarity_top_k=3)
    before = retriever.retrieve("alpha budget")
    assert pickle.loads(pickle.dumps(retriever)).retrieve("alpha budget") == before
    with pytest.raises(TypeError, match="lexical index in memory cannot be pickled"):
        pickle.dumps(NexusRetriever(index, words))
    with pytest.raises(FileNotFoundError, match="no lexical index in"):
        NexusRetriever(index, tmp_path / "nowhere").retrieve("alpha budget")


def test_words_of_a_store_that_changed(simple):
    """A node that only the words know is not returned; one that they lack is found by vector."""
    index, words = simple
    index.delete_nodes([id_of("alpha team lunch")])
    retriever = NexusRetriever(index, words, weight=math.inf, similarity_top_k=3)
    assert texts(retriever, "team lunch") == []
    words.delete([id_of("weather report")])
    assert texts(NexusRetriever(index, words, weight=0.1))[0] == "weather report"
    other = LexicalIndex()
    other.add(["x"], ["alpha"])
    with pytest.raises(ValueError, match="words of another corpus"):
        NexusRetriever(index, other).retrieve("alpha")


def test_an_index_opened_again(store_of):  # noqa: F811
    """Over a store that holds texts, no docstore is needed."""
    store = store_of(ChromaStore)
    index = store.fill(nodes(), TableEmbedding(TABLE))
    words = index_words(index)
    context = StorageContext.from_defaults(vector_store=index.vector_store)
    again = VectorStoreIndex.from_vector_store(
        index.vector_store, embed_model=TableEmbedding(TABLE), storage_context=context
    )
    assert texts(NexusRetriever(again, words, weight=0.5))[0] == "weather report"


@pytest.mark.model
def test_tune(encoder, clinic, tmp_path):
    """One call fits all from the index's own objects; a folder opens again; undo puts back."""
    train, dev, test = (
        part.subset(list(part.queries)[:size])
        for part, size in zip(clinic, (80, 20, 30), strict=True)
    )
    texts = [TextNode(id_=id_, text=text) for id_, text in train.corpus.items()]
    index = VectorStoreIndex(texts, embed_model=NexusEmbedding())
    before = evaluate(index.as_retriever(similarity_top_k=10), test)
    config = TuneConfig(
        heads=FinetuneConfig(dendrites=0, epochs=2), folds=2, weights=(0.0, 0.5, math.inf)
    )
    folder = tmp_path / "tuned"
    retriever = NexusRetriever.tune(index, train, dev, config, folder=folder)
    assert {stage.name for stage in retriever.result.stages} >= {"heads", "nudge", "weight"}
    after = evaluate(retriever, test)
    assert after.metrics["ndcg@10"] > before.metrics["ndcg@10"]
    for again in (NexusRetriever.load(folder, index), pickle.loads(pickle.dumps(retriever))):
        assert evaluate(again, test).hits.ids == after.hits.ids
    assert retriever.result.undo()["vectors"] == sum(
        stage.kept and len({d for r in (train, dev) for f in r.relevant_docs.values() for d in f})
        for stage in retriever.result.stages
        if stage.name == "nudge"
    )
    assert evaluate(index.as_retriever(similarity_top_k=10), test).hits.ids == before.hits.ids


def test_tune_without_words(table_encoder):
    """Vectors alone: no lexical index is made, and the retriever needs none."""
    vectors = {f"t{n}": (1, n) for n in range(12)}
    questions = {f"q{n}": (1, n + 0.1) for n in range(12)}
    embed_model = NexusEmbedding.from_encoder(table_encoder({**vectors, **questions}))
    nodes = [TextNode(id_=text, text=text) for text in vectors]
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    train = dataset_from_nodes([(f"q{n}", f"t{n}") for n in range(12)], nodes)
    config = TuneConfig(heads=None, words=False, questions=False)
    retriever = NexusRetriever.tune(index, train, config=config, similarity_top_k=2)
    assert (retriever.result.lexical, retriever.result.weight) == (None, 0.0)
    assert texts(retriever, "q3") == ["t3", "t4"]
    retriever.filters = only("public")
    assert texts(retriever, "q3") == []
