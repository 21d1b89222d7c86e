"""NexusRetriever in LangChain: its own tests, both scores, metadata filters on both sides, LCEL."""

import math
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from test_index_contract import postgres_uri  # noqa: F401
from test_langchain_stores import (
    ChromaStore,
    CollectionStore,
    FaissStore,
    MemoryStore,
    PostgresStore,
    QdrantStore,
    TableEmbeddings,
    axis,
    id_of,
    store_of,  # noqa: F401
)

from nexus_integrations import FinetuneConfig, evaluate
from nexus_integrations.langchain import NexusEmbeddings, NexusRetriever, as_dataset, index_words
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


def qdrant_filter(group: str):
    from qdrant_client import models

    wanted = models.MatchValue(value=group)
    nobody = models.FieldCondition(key="metadata.group", match=models.MatchValue(value="nobody"))
    # Alternatives, of which a store must not take the ids asked for to be one.
    return models.Filter(should=[models.FieldCondition(key="metadata.group", match=wanted), nobody])


FILTERING = {
    "memory": (MemoryStore, lambda group: lambda document: document.metadata["group"] == group),
    "chroma": (ChromaStore, lambda group: {"$or": [{"group": group}, {"group": "nobody"}]}),
    "qdrant": (QdrantStore, qdrant_filter),
    "pgvectorstore": (PostgresStore, lambda group: {"group": {"$in": [group, "nobody"]}}),
    "pgvector": (CollectionStore, lambda group: {"$or": [{"group": group}, {"group": "nobody"}]}),
}


def documents() -> list[Document]:
    """The passages, each with the group that may read it."""
    return [
        Document(
            id=id_of(text),
            page_content=text,
            metadata={"group": "public" if text in PUBLIC else "secret"},
        )
        for text in TABLE
        if text != "alpha budget"
    ]


def texts(found: list[Document]) -> list[str]:
    return [document.page_content for document in found]


@pytest.fixture
def store():
    """LangChain's store in memory."""
    store = InMemoryVectorStore(TableEmbeddings(TABLE))
    store.add_documents(documents())
    return store


class Standard(RetrieversIntegrationTests):
    """LangChain's integration tests for retrievers, over one store."""

    kind = MemoryStore

    @pytest.fixture(autouse=True)
    def filled(self, store_of):  # noqa: F811
        self.store = store_of(self.kind).fill(documents(), TableEmbeddings(TABLE))

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return NexusRetriever

    @property
    def retriever_constructor_params(self) -> dict:
        return {"vectorstore": self.store, "lexical": index_words(self.store)}

    @property
    def retriever_query_example(self) -> str:
        return "alpha budget"


class TestInMemory(Standard):
    """Over LangChain's own store."""


class TestChroma(Standard):
    """Over a Chroma folder."""

    kind = ChromaStore


class TestQdrant(Standard):
    """Over Qdrant."""

    kind = QdrantStore


class TestPostgres(Standard):
    """Over a table of PostgreSQL."""

    kind = PostgresStore


async def test_both_scores(store):
    """Cosine plus weight times BM25 over the best BM25; one side alone at 0 and at infinity."""
    words = index_words(store)
    retriever = NexusRetriever(vectorstore=store, lexical=words, weight=0.5, k=3)
    found = retriever.invoke("alpha budget")
    # The weather has cosine 1 and no word; a secret cosine 0 and the best BM25.
    assert found[0].page_content == "weather report"
    assert found[0].id == id_of("weather report")
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == pytest.approx([1.0, 0.5, 0.5])
    assert "relevance_score" not in store.get_by_ids([found[0].id])[0].metadata
    assert await retriever.ainvoke("alpha budget", k=2) == found[:2]
    by_words = NexusRetriever(vectorstore=store, lexical=words, weight=math.inf, k=200)
    assert texts(by_words.invoke("team")) == ["alpha team lunch"]
    by_vectors = NexusRetriever(vectorstore=store, lexical=words, weight=0, k=1)
    assert texts(by_vectors.invoke("alpha budget")) == ["weather report"]


@pytest.mark.parametrize(("kind", "make"), FILTERING.values(), ids=FILTERING)
@pytest.mark.parametrize("weight", [0.0, 2.0, math.inf])
def test_a_filter_never_leaks(kind, make, store_of, weight):  # noqa: F811
    """130 passages of another group fit every word: none comes back, and the fitting one does."""
    store = store_of(kind).fill(documents(), TableEmbeddings(TABLE))
    words = index_words(store)
    assert len(words) == 132
    retriever = NexusRetriever(
        vectorstore=store, lexical=words, weight=weight, k=5, filter=make("public")
    )
    found = texts(retriever.invoke("alpha budget"))
    assert set(found) == ({"alpha team lunch"} if weight == math.inf else PUBLIC)
    secret = texts(retriever.invoke("alpha budget", filter=make("secret")))
    assert len(set(secret) & set(SECRETS)) == 5
    assert retriever.invoke("alpha budget", filter=make("none")) == []


def test_a_store_without_filters_refuses(store_of):  # noqa: F811
    """Of FAISS only what was found is filtered, too late: refused; without a filter it serves."""
    store = store_of(FaissStore).fill(documents(), TableEmbeddings(TABLE))
    retriever = NexusRetriever(vectorstore=store, lexical=index_words(store), weight=0.1, k=1)
    assert texts(retriever.invoke("alpha budget")) == ["weather report"]
    with pytest.raises(NotImplementedError, match=r"not a langchain_community\.FAISS: leave"):
        retriever.invoke("alpha budget", filter={"group": "public"})


def test_where_langchain_takes_a_retriever(store):
    """A chain, a tool of an agent, an ensemble with another retriever, and `evaluate`."""
    ensemble = pytest.importorskip("langchain_classic.retrievers").EnsembleRetriever
    retriever = NexusRetriever(vectorstore=store, lexical=index_words(store), weight=0.5, k=10)
    chain = retriever | RunnableLambda(lambda found: found[0].page_content)
    assert chain.batch(["alpha budget"] * 2) == ["weather report"] * 2
    tool = create_retriever_tool(retriever, "search", "Searches.")
    assert tool.invoke({"query": "alpha budget"}).startswith("weather report")
    both = ensemble(retrievers=[retriever, store.as_retriever()])
    assert texts(both.invoke("alpha budget"))[0] == "weather report"
    asked = as_dataset([("team lunch", id_of("alpha team lunch"))], documents())
    words_alone = retriever.model_copy(update={"weight": math.inf})
    assert evaluate(words_alone, asked, metrics=["mrr@1"]).metrics["mrr@1"] == 1


def test_pickle(store, tmp_path):
    """A retriever over a store and a folder of words travels; words in memory do not."""
    words = index_words(store, tmp_path / "words")
    for lexical in (words, tmp_path / "words"):
        retriever = NexusRetriever(vectorstore=store, lexical=lexical, k=3)
        found = retriever.invoke("alpha budget")
        again = pickle.loads(pickle.dumps(retriever))
        assert again.invoke("alpha budget") == found
    with pytest.raises(TypeError, match="lexical index in memory cannot be pickled"):
        pickle.dumps(NexusRetriever(vectorstore=store, lexical=index_words(store)))


def test_settings_are_checked(store):
    """A typing error, a negative weight and k = 0 raise on construction."""
    words = index_words(store)
    for settings, match in (
        ({"wieght": 1}, "wieght\n.*not permitted"),
        ({"weight": -1}, "weight\n.*greater than or equal to 0"),
        ({"k": 0}, "k\n.*greater than or equal to 1"),
    ):
        with pytest.raises(ValueError, match=match):
            NexusRetriever(vectorstore=store, lexical=words, **settings)


@pytest.mark.model
def test_tune(encoder, clinic, tmp_path):
    """One call fits all from the store's own objects; a folder opens again; undo puts back."""
    train, dev, test = (
        part.subset(list(part.queries)[:size])
        for part, size in zip(clinic, (80, 20, 30), strict=True)
    )
    store = InMemoryVectorStore(NexusEmbeddings())
    store.add_documents([Document(id=i, page_content=text) for i, text in train.corpus.items()])
    before = evaluate(store.as_retriever(search_kwargs={"k": 10}), test)
    config = TuneConfig(
        heads=FinetuneConfig(dendrites=0, epochs=2), folds=2, weights=(0.0, 0.5, math.inf)
    )
    folder = tmp_path / "tuned"
    retriever = NexusRetriever.tune(store, train, dev, config, folder=folder)
    after = evaluate(retriever, test)
    assert after.metrics["ndcg@10"] > before.metrics["ndcg@10"]
    for again in (NexusRetriever.load(folder, store), pickle.loads(pickle.dumps(retriever))):
        assert evaluate(again, test).hits.ids == after.hits.ids
    retriever.result.undo()
    again = evaluate(store.as_retriever(search_kwargs={"k": 10}), test)
    assert again.hits.ids == before.hits.ids


def test_chroma_gives_back_documents_without_metadata(tmp_path):
    """Its own `get_by_ids` fails for them; their texts are the words."""
    chroma = pytest.importorskip("langchain_chroma", reason="langchain-chroma is not installed")
    import chromadb

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    store = chroma.Chroma("bare", TableEmbeddings(TABLE), client=client)
    store.add_documents([Document(id=id_of(text), page_content=text) for text in sorted(PUBLIC)])
    words = index_words(store, tmp_path / "words")
    assert len(words) == 2
    found = NexusRetriever(vectorstore=store, lexical=words, k=1).invoke("alpha budget")
    assert found[0].page_content in PUBLIC
