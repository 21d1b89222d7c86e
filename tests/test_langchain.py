"""The LangChain classes, in LangChain: its standard tests, caches, in-memory store, NUDGE."""

import asyncio
import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import Field

from nexus_integrations import (
    DendriticEncoder,
    DendriticHead,
    NudgeConfig,
    evaluate,
)
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.langchain import (
    NexusEmbeddings,
    NudgePostprocessor,
    as_dataset,
    open_index,
)
from nexus_integrations.langchain.nudge import encoder_of
from nexus_integrations.retrievers import DenseRetriever

TEXTS = ["the fridge", "the stairs", "a form", "the goldie is broken", "x"]


def random_head(dimension: int, seed: int = 0) -> DendriticHead:
    """Return a linear head of random weights."""
    head = DendriticHead.untrained(dimension)
    weight = np.random.default_rng(seed).normal(size=head.weight.shape)
    return replace(head, weight=weight)


@pytest.fixture
def tuned(tiny, tmp_path):
    """The folder of an encoder whose query head changes queries and no document."""
    head = random_head(tiny.dimension)
    tiny.with_heads(query_head=head, document_head=None).save(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def nudgeable(table_encoder):
    """A store of two documents, a question that the second answers, and the model of all three."""
    encoder = table_encoder({"first": (1, 0), "second": (0, 1), "question": (0.8, 0.6)})
    embeddings = NexusEmbeddings.from_encoder(encoder)
    store = InMemoryVectorStore(embeddings)
    documents = [
        Document(id="a", page_content="first"),
        Document(id="b", page_content="second", metadata={"page": 7}),
    ]
    store.add_documents(documents)
    return store, as_dataset([("question", "b")], documents), embeddings


def found(store: InMemoryVectorStore) -> Document:
    return store.similarity_search("question", k=1)[0]


# LangChain's standard tests, as they are


@pytest.mark.model
@pytest.mark.usefixtures("encoder")
class TestStandardUnit(EmbeddingsUnitTests):
    """LangChain's unit tests for embedding models."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NexusEmbeddings

    @property
    def embedding_model_params(self) -> dict:
        return {"model": "all-MiniLM-L6-v2"}


@pytest.mark.model
@pytest.mark.usefixtures("encoder", "no_network")
class TestStandardIntegration(EmbeddingsIntegrationTests):
    """LangChain's integration tests for embedding models, without a network."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NexusEmbeddings


# The embedding model


@pytest.mark.model
def test_default_model(encoder):
    """`NexusEmbeddings()` is all-MiniLM-L6-v2, newlines included, as Python floats."""
    vector = NexusEmbeddings().embed_query("two\nlines")
    assert all(type(value) is float for value in vector)
    np.testing.assert_allclose(vector, encoder.encode_queries(["two\nlines"])[0])


def test_construction_loads_nothing():
    """A model that does not exist is an error of the first use, not of construction."""
    embeddings = NexusEmbeddings(model="/nowhere/model")
    assert embeddings.model_name == "/nowhere/model"
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model"):
        embeddings.embed_query("text")


def test_unknown_argument():
    """A typing error in an option raises."""
    with pytest.raises(ValueError, match=r"modelname\n.*not permitted"):
        NexusEmbeddings(modelname="x")


def test_roles(tuned, tiny):
    """Queries go through the query head, documents do not."""
    embeddings, plain = NexusEmbeddings(model=tuned), NexusEmbeddings.from_encoder(tiny)
    assert embeddings.embed_documents(["a"]) == plain.embed_documents(["a"])
    assert embeddings.embed_query("a") != plain.embed_query("a")


def test_inputs(tiny_model):
    """No texts give no vectors, a tuple is a list, a bare string and None are refused."""
    embeddings = NexusEmbeddings(model=tiny_model)
    assert embeddings.embed_documents([]) == []
    assert embeddings.embed_documents(("a", "b")) == embeddings.embed_documents(["a", "b"])
    with pytest.raises(TypeError, match=r"got one string: write \[text\]"):
        embeddings.embed_documents("hello")
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        embeddings.embed_documents(["a", None])


async def test_async_inputs(tiny_model):
    """The async methods check alike."""
    embeddings = NexusEmbeddings(model=tiny_model)
    assert await embeddings.aembed_documents([]) == []
    with pytest.raises(TypeError, match=r"got one string: write \[text\]"):
        await embeddings.aembed_documents("hello")
    with pytest.raises(TypeError, match="text 0 is NoneType"):
        await embeddings.aembed_query(None)


async def test_async_equals_sync(tuned, monkeypatch):
    """Every async method gives what its sync twin gives, also in several parts."""
    monkeypatch.setattr("nexus_integrations.frameworks.queue._TEXTS", 2)
    embeddings = NexusEmbeddings(model=tuned)
    rows = await embeddings.aembed_documents(TEXTS)
    np.testing.assert_allclose(rows, embeddings.embed_documents(TEXTS), atol=1e-6)
    assert await embeddings.aembed_query("a") == embeddings.embed_query("a")


async def test_event_loop_goes_on(table_encoder, monkeypatch):
    """While documents are embedded the loop ticks, and a query gets its turn between parts."""
    monkeypatch.setattr("nexus_integrations.frameworks.queue._TEXTS", 1)
    encoder = table_encoder(dict.fromkeys(TEXTS, (1, 0)))
    encode = encoder.backbone.encode

    busy, gate = threading.Event(), threading.Event()

    def waiting(texts, role):
        busy.set()
        assert gate.wait(60), "the event loop stands still"
        return encode(texts, role)

    monkeypatch.setattr(encoder.backbone, "encode", waiting)
    embeddings = NexusEmbeddings.from_encoder(encoder)
    documents = asyncio.create_task(embeddings.aembed_documents(TEXTS))
    while not busy.is_set():
        await asyncio.sleep(0.001)
    query = asyncio.create_task(embeddings.aembed_query("x"))
    for _ in range(20):  # the model is at work, and the loop ticks
        await asyncio.sleep(0.001)
    assert not documents.done()
    gate.set()
    await documents
    await query
    assert [role for role, _ in encoder.backbone.asked].index("query") == 1


# Configuration that travels


def test_dump_round_trip(tuned):
    """`model_dump` describes the model with its fingerprint, and makes it again."""
    embeddings = NexusEmbeddings(model=tuned)
    described = embeddings.model_dump()
    assert described == {
        "model_name": str(tuned),
        "device": "cpu",
        "backend": "auto",
        "precision": None,
        "num_threads": None,
        "micro_batching": True,
        "fingerprint": DendriticEncoder.load(tuned).fingerprint,
    }
    again = NexusEmbeddings(**described)
    assert again.embed_query("a") == embeddings.embed_query("a")
    with pytest.raises(ValueError, match="the model was replaced since"):
        NexusEmbeddings(**{**described, "fingerprint": "0" * 64}).embed_query("a")


def test_pickle_carries_configuration(tuned, tiny):
    """A pickle is small and gives the same vectors; an encoder in memory has none."""
    embeddings = NexusEmbeddings(model=tuned)
    vector = embeddings.embed_query("a")
    data = pickle.dumps(embeddings)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again == embeddings
    assert again.embed_query("a") == vector
    with pytest.raises(TypeError, match=r"save it with encoder\.save"):
        pickle.dumps(NexusEmbeddings.from_encoder(tiny))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: e.model_copy(deep=True)])
def test_copies_share_the_encoder(tiny, duplicate):
    """Copies hold the same weights, also of an encoder in memory."""
    embeddings = NexusEmbeddings.from_encoder(tiny)
    assert duplicate(embeddings).encoder is tiny


def test_renamed_model_is_refused(tiny_model):
    """Changing the name after construction raises on use."""
    embeddings = NexusEmbeddings(model=tiny_model)
    embeddings.model_name = "all-MiniLM-L6-v2"
    with pytest.raises(ValueError, match="make a new NexusEmbeddings"):
        embeddings.embed_query("a")


# Caches


def test_cache_namespaces(tuned, tiny):
    """Models that differ in the query head alone share documents' namespace, not queries'."""
    embeddings, plain = NexusEmbeddings(model=tuned), NexusEmbeddings.from_encoder(tiny)
    assert embeddings.cache_namespace() == plain.cache_namespace("document")
    assert embeddings.cache_namespace("query") != plain.cache_namespace("query")
    assert tiny.fingerprint in plain.cache_namespace("query")


def test_cache_backed_embeddings(tiny):
    """In one store with our namespaces, two models never read each other's vectors."""
    cache_backed = pytest.importorskip("langchain_classic.embeddings").CacheBackedEmbeddings
    head = random_head(tiny.dimension)
    bytes_store = InMemoryByteStore()

    def cached(embeddings: NexusEmbeddings) -> Embeddings:
        return cache_backed.from_bytes_store(
            embeddings, bytes_store, namespace=embeddings.cache_namespace(), key_encoder="sha256"
        )

    plain = NexusEmbeddings.from_encoder(tiny)
    both = NexusEmbeddings.from_encoder(tiny.with_heads(query_head=head, document_head=head))
    query = NexusEmbeddings.from_encoder(tiny.with_heads(query_head=head, document_head=None))
    for embeddings, entries in ((plain, 5), (both, 10), (query, 10), (plain, 10)):
        rows = cached(embeddings).embed_documents(TEXTS)
        np.testing.assert_allclose(rows, embeddings.embed_documents(TEXTS), atol=1e-6)
        assert len(list(bytes_store.yield_keys())) == entries


# Data


def test_datasets_are_taken_over(clinic):
    """A RetrievalDataset stays itself; LlamaIndex's layout and pairs become one."""
    train = clinic[0]
    assert as_dataset(train) is train
    layout = type("Layout", (), {n: getattr(train, n) for n in ("queries", "corpus")})()
    layout.relevant_docs = train.relevant_docs
    assert as_dataset(layout).relevant_docs == train.relevant_docs
    pairs = [("why?", Document(id="a", page_content="first")), ("how?", ["a", "b"])]
    dataset = as_dataset(pairs, [Document(id="b", page_content="second")])
    assert dataset.corpus == {"b": "second", "a": "first"}
    assert dataset.relevant_docs == {"q0": ["a"], "q1": ["a", "b"]}


# NUDGE


def test_search_sees_moved_vectors(nudgeable, tmp_path):
    """Searches find the answer after the nudge, and after dump and load; metadata stays."""
    store, dataset, embeddings = nudgeable
    assert found(store).id == "a"  # similarities .8 and .6
    report = NudgePostprocessor(
        dataset, embeddings=embeddings, config=NudgeConfig(gamma=1.0)
    ).apply(store)
    assert report.moved == 1
    # The second turns by acos(1 - 1/2) = 60 degrees, past the question, so it stops on it.
    np.testing.assert_allclose(store.store["b"]["vector"], [0.8, 0.6], atol=1e-6)
    store.dump(str(tmp_path / "store.json"))
    for searched in (store, InMemoryVectorStore.load(str(tmp_path / "store.json"), embeddings)):
        assert found(searched) == Document(id="b", page_content="second", metadata={"page": 7})


def test_undo_in_another_process(nudgeable, tmp_path):
    """A state folder undoes the nudge of a store that was dumped and loaded again."""
    store, dataset, embeddings = nudgeable
    settings = {"embeddings": embeddings, "state_dir": tmp_path / "state"}
    NudgePostprocessor(dataset, config=NudgeConfig(gamma=0.5), **settings).apply(store)
    store.dump(str(tmp_path / "store.json"))
    reloaded = InMemoryVectorStore.load(str(tmp_path / "store.json"), embeddings)
    later = NudgePostprocessor(dataset, **settings)
    assert later.undo(reloaded) == 1
    assert reloaded.store["b"]["vector"] == [0.0, 1.0]
    assert later.undo(reloaded) == 0


@pytest.mark.parametrize("durable", [False, True])
def test_applying_twice_starts_from_base(nudgeable, tmp_path, durable):
    """Nudging again with the same settings changes nothing more; undo restores exactly."""
    store, dataset, embeddings = nudgeable
    nudge = NudgePostprocessor(
        dataset,
        embeddings=embeddings,
        config=NudgeConfig(gamma=0.1),
        state_dir=tmp_path if durable else None,
    )
    nudge.apply(store)
    once = list(store.store["b"]["vector"])
    # cos = 1 - .1/2 = .95 against its base (0, 1)
    assert once[1] == pytest.approx(0.95)
    nudge.apply(store)
    assert store.store["b"]["vector"] == once
    assert nudge.undo(store) == 1
    assert store.store["b"]["vector"] == [0.0, 1.0]
    assert store.store["a"]["vector"] == [1.0, 0.0]


def test_nudge_raises_ndcg(clinic, clinic_encoder):
    """On the demo corpus, with γ chosen on dev, the store answers the dev questions better."""
    train, dev, _ = clinic
    embeddings = NexusEmbeddings.from_encoder(clinic_encoder)
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(id=i, page_content=text) for i, text in train.corpus.items()])
    before = evaluate(DenseRetriever(open_index(store), clinic_encoder), dev).metrics["ndcg@10"]
    report = NudgePostprocessor(train, dev, embeddings=embeddings).apply(store)
    after = evaluate(DenseRetriever(open_index(store), clinic_encoder), dev).metrics["ndcg@10"]
    assert after == pytest.approx(report.curve[report.gamma])
    assert after > before


def test_pairs_nudge_without_a_dataset(nudgeable):
    """Pairs of a question and a document are data enough."""
    store, _, embeddings = nudgeable
    pairs = [("question", store.get_by_ids(["b"])[0])]
    nudge = NudgePostprocessor(pairs, embeddings=embeddings, config=NudgeConfig(gamma=1.0))
    assert nudge.apply(store).moved == 1
    assert found(store).id == "b"


def test_unknown_store(nudgeable):
    """A store of another kind is refused by name; a `VectorIndex` is taken as it is."""
    _, dataset, embeddings = nudgeable

    class OtherStore(VectorStore):
        similarity_search = from_texts = None

    nudge = NudgePostprocessor(dataset, embeddings=embeddings, config=NudgeConfig(gamma=0.1))
    with pytest.raises(NotImplementedError, match=r"OtherStore cannot .* an InMemoryVectorStore"):
        nudge.apply(OtherStore())
    index = MemoryIndex(["a", "b"], np.eye(2, dtype=np.float32))
    assert nudge.apply(index).moved == 1


def test_foreign_embeddings():
    """Any embedding model nudges, within γ; another model is refused."""
    foreign = DeterministicFakeEmbedding(size=8)
    store = InMemoryVectorStore(foreign)
    store.add_documents([Document(id=text, page_content=text) for text in TEXTS])
    answer = store.similarity_search("question", k=1)[0].id  # less than 90 degrees off
    dataset = as_dataset([("question", answer)], store.get_by_ids(TEXTS))
    base = list(store.store[answer]["vector"])
    nudge = NudgePostprocessor(dataset, embeddings=foreign, config=NudgeConfig(gamma=0.2))
    assert nudge.encoder is nudge.encoder  # which embeds a word to learn the dimension
    report = nudge.apply(store)
    moved = np.array(store.store[answer]["vector"])
    # The length stays; the squared distance moved is γ times the squared length.
    np.testing.assert_allclose(np.linalg.norm(moved), np.linalg.norm(base), rtol=1e-5)
    assert report.distances[0] ** 2 == pytest.approx(0.2, abs=1e-4)
    nudge.embeddings = type("Renamed", (DeterministicFakeEmbedding,), {})(size=8)
    with pytest.raises(ValueError, match="nudged with another encoder"):
        nudge.apply(store)
    assert nudge.undo(store) == 1
    np.testing.assert_allclose(store.store[answer]["vector"], base, rtol=1e-6)


async def test_query_time(nudgeable, tmp_path):
    """For a store that cannot be written, retrieved documents are ranked by the moved vectors."""
    classic = pytest.importorskip("langchain_classic.retrievers")
    store, dataset, embeddings = nudgeable
    nudge = NudgePostprocessor(
        dataset, embeddings=embeddings, config=NudgeConfig(gamma=1.0), state_dir=tmp_path
    )
    retriever = classic.ContextualCompressionRetriever(
        base_compressor=nudge, base_retriever=store.as_retriever(search_kwargs={"k": 2})
    )
    assert [document.id for document in retriever.invoke("question")] == ["a", "b"]
    assert nudge.apply().moved == 1
    assert store.store["b"]["vector"] == [0.0, 1.0]
    found = retriever.invoke("question")
    # The second document turns onto the question; the first keeps its cosine, 0.8.
    assert [document.id for document in found] == ["b", "a"]
    assert found[0].metadata == {"page": 7, "relevance_score": pytest.approx(1)}
    assert found[1].metadata == {"relevance_score": pytest.approx(0.8)}
    assert store.get_by_ids(["b"])[0].metadata == {"page": 7}
    nudge.top_n = 1
    assert [document.id for document in await retriever.ainvoke("question")] == ["b"]
    nudge.undo()
    nudge.apply(store)  # in the store: nothing to do at query time
    assert retriever.invoke("question") == [store.get_by_ids(["b"])[0]]


def test_settings_tell_foreign_embeddings_apart():
    """Normalising is another model; a progress bar, a batch size and a client are not."""

    class Tuned(DeterministicFakeEmbedding):
        encode_kwargs: dict[str, object] = Field(default_factory=dict)
        show_progress: bool = False
        client: object = None

    def fingerprint(**settings: object) -> str:
        return encoder_of(Tuned(size=8, **settings)).fingerprint

    assert fingerprint() == fingerprint(show_progress=True) == fingerprint(client=object())
    assert fingerprint(encode_kwargs={"normalize_embeddings": True}) != fingerprint()


# What the in-memory stores of both frameworks share


def test_replace_is_checked(nudgeable):
    """Unknown ids and vectors that cannot be ranked are refused before anything is written."""
    store, _, _ = nudgeable
    index = open_index(store)
    with pytest.raises(KeyError, match="no document 'c'"):
        index.replace(["a", "c"], np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected vectors of shape \(1, 2\), got \(1, 3\)"):
        index.replace(["a"], np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="'b' has NaN"):
        index.replace(["a", "b"], np.array([[1, 1], [np.nan, 1]], np.float32))
    assert store.store["a"]["vector"] == [1.0, 0.0]
    store.store["b"]["vector"] = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="'b' has dimension 3, others 2"):
        index.search(np.ones((1, 2), np.float32), 1)


def test_index_reads_the_store_as_it_is(nudgeable):
    """Search equals the store's own; documents added or deleted later are seen."""
    store, _, _ = nudgeable
    index = open_index(store)
    hits = index.search(np.array([[0.8, 0.6]], np.float32), 5)
    own = store.similarity_search_with_score_by_vector([0.8, 0.6], k=5)
    assert hits.ids == [[document.id for document, _ in own]]
    np.testing.assert_allclose(hits.similarities[0], [score for _, score in own], atol=1e-6)
    store.delete(["a"])
    assert (len(index), index.dimension, list(index.ids())) == (1, 2, [["b"]])
