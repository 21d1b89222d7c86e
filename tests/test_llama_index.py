"""The LlamaIndex classes, in LlamaIndex: embedding, caches, events, fine-tuning, NUDGE."""

import asyncio
import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from string import ascii_lowercase

import numpy as np
import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from nexus_integrations import (
    DendriticEncoder,
    DendriticHead,
    FinetuneConfig,
    NudgeConfig,
    RetrievalDataset,
    evaluate,
)
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.llama_index import (
    NexusEmbedding,
    NexusFinetuneEngine,
    NudgePostprocessor,
    as_dataset,
    dataset_from_nodes,
    open_index,
)
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.result import FinetuneResult

TEXTS = ["the fridge", "the stairs", "a form", "the goldie is broken", "x"]


class QADataset:
    """What LlamaIndex's `EmbeddingQAFinetuneDataset` looks like."""

    def __init__(self, dataset: RetrievalDataset) -> None:
        self.queries = dataset.queries
        self.corpus = dataset.corpus
        self.relevant_docs = dataset.relevant_docs


class Recorder(BaseEventHandler):
    """Keeps the embedding events it sees."""

    events: list = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event, **_) -> None:
        if isinstance(event, (EmbeddingStartEvent, EmbeddingEndEvent)):
            self.events.append(event)


def random_head(dimension: int, seed: int = 0) -> DendriticHead:
    """Return a linear head of random weights."""
    head = DendriticHead.untrained(dimension)
    weight = np.random.default_rng(seed).normal(size=head.weight.shape)
    return replace(head, weight=weight)


def with_query_head(encoder: DendriticEncoder, seed: int = 0) -> DendriticEncoder:
    """Return the encoder with a random head on queries alone."""
    return encoder.with_heads(query_head=random_head(encoder.dimension, seed), document_head=None)


@pytest.fixture
def tuned(tiny, tmp_path):
    """The folder of an encoder whose query head changes queries and no document."""
    with_query_head(tiny).save(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def nudgeable(table_encoder):
    """Two nodes, a question that the second answers, and the model of all three."""
    encoder = table_encoder({"first": (1, 0), "second": (0, 1), "question": (0.8, 0.6)})
    embed_model = NexusEmbedding.from_encoder(encoder)
    nodes = [TextNode(id_="a", text="first"), TextNode(id_="b", text="second")]
    dataset = dataset_from_nodes([("question", "b")], nodes)
    return VectorStoreIndex(nodes, embed_model=embed_model), dataset, embed_model


def found(index, question: str = "question") -> str:
    return index.as_retriever(similarity_top_k=1).retrieve(question)[0].node_id


# The embedding model


@pytest.mark.model
def test_default_model_in_settings(encoder):
    """`NexusEmbedding()` is all-MiniLM-L6-v2; `Settings` takes it; vectors are Python floats."""
    before = Settings._embed_model
    Settings.embed_model = NexusEmbedding()
    try:
        vector = Settings.embed_model.get_text_embedding("the vaccine fridge")
    finally:
        Settings._embed_model = before
    assert all(type(value) is float for value in vector)
    np.testing.assert_allclose(vector, encoder.encode_documents(["the vaccine fridge"])[0])


@pytest.mark.model
def test_vectors_equal_langchains(encoder):
    """Both frameworks' classes give the same vectors, to 1e-6, for either role."""
    from nexus_integrations.langchain import NexusEmbeddings

    ours, theirs = NexusEmbedding(), NexusEmbeddings()
    np.testing.assert_allclose(
        ours.get_text_embedding_batch(TEXTS), theirs.embed_documents(TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        ours.get_query_embedding("a\nb"), theirs.embed_query("a\nb"), atol=1e-6
    )
    assert ours.encoder is theirs.encoder


def test_construction_loads_nothing():
    """A model that does not exist is an error of the first use, not of construction."""
    embed_model = NexusEmbedding(model="/nowhere/model")
    assert "/nowhere/model" in repr(embed_model)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model"):
        embed_model.get_text_embedding("text")


def test_unknown_argument():
    """A typing error in an option raises, where LlamaIndex's own classes ignore it."""
    with pytest.raises(ValueError, match=r"embed_batchsize\n.*not permitted"):
        NexusEmbedding(embed_batchsize=3)


def test_all_framework_fields_are_taken(tiny_model):
    """What LlamaIndex's base class offers is accepted and kept."""
    manager, store, limiter = CallbackManager([]), SimpleKVStore(), object()
    newer = {"rate_limiter": limiter} if "rate_limiter" in BaseEmbedding.model_fields else {}
    embed_model = NexusEmbedding(
        model=tiny_model,
        device="cpu",
        embed_batch_size=7,
        num_workers=2,
        callback_manager=manager,
        embeddings_cache=store,
        **newer,
    )
    assert embed_model.model_name == str(tiny_model)
    assert (embed_model.embed_batch_size, embed_model.num_workers) == (7, 2)
    assert embed_model.callback_manager is manager
    assert not newer or embed_model.rate_limiter is limiter
    assert embed_model.embeddings_cache.store is store


def test_cache_of_another_type():
    """A dictionary is no cache."""
    with pytest.raises(TypeError, match="must be a BaseKVStore"):
        NexusEmbedding(embeddings_cache={})


def test_roles(tuned, tiny):
    """Queries go through the query head, texts do not."""
    embed_model = NexusEmbedding(model=tuned)
    plain = NexusEmbedding.from_encoder(tiny)
    assert embed_model.get_text_embedding("a") == plain.get_text_embedding("a")
    assert embed_model.get_query_embedding("a") != plain.get_query_embedding("a")
    np.testing.assert_array_equal(
        embed_model.get_query_embedding("a"), DendriticEncoder.load(tuned).encode_queries(["a"])[0]
    )


def test_batches_equal_single_texts(tiny_model):
    """A batch gives what its texts give one by one, in order, whatever the batch size."""
    embed_model = NexusEmbedding(model=tiny_model, embed_batch_size=2)
    single = [embed_model.get_text_embedding(text) for text in TEXTS]
    np.testing.assert_allclose(embed_model.get_text_embedding_batch(TEXTS), single, atol=1e-6)
    assert embed_model.get_text_embedding_batch([]) == []


def test_model_by_either_name(tiny_model):
    """`model` is the argument; LlamaIndex's own name of the field does the same."""
    ours, theirs = NexusEmbedding(model=tiny_model), NexusEmbedding(model_name=str(tiny_model))
    assert ours.to_dict() == theirs.to_dict()
    assert ours.to_dict()["model_name"] == ours.model_name == str(tiny_model)


def test_item_that_is_no_text(tiny_model):
    """None among the texts fails at once and is named by its place."""
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        NexusEmbedding(model=tiny_model).get_text_embedding_batch(["a", None])


def test_fewer_vectors_than_texts(table_encoder, monkeypatch):
    """A missing vector is an error: LlamaIndex would leave a node without one."""
    encoder = table_encoder({"a": (1, 0), "b": (0, 1)})
    monkeypatch.setattr(encoder, "encode_documents", lambda texts: np.ones((1, 2)))
    with pytest.raises(RuntimeError, match="1 vectors for 2 texts"):
        NexusEmbedding.from_encoder(encoder).get_text_embedding_batch(["a", "b"])


# Configuration that travels


def test_dictionary_round_trip(tuned):
    """`from_dict(to_dict())` and `to_json` keep every setting and the fingerprint."""
    embed_model = NexusEmbedding(model=tuned, embed_batch_size=5, num_workers=3)
    described = embed_model.to_dict()
    assert described["class_name"] == "NexusEmbedding"
    assert described["fingerprint"] == DendriticEncoder.load(tuned).fingerprint
    again = NexusEmbedding.from_dict(dict(described))
    assert again.to_dict() == described
    assert again.get_query_embedding("a") == embed_model.get_query_embedding("a")
    cached = NexusEmbedding(model=tuned, embeddings_cache=SimpleKVStore())
    assert json.loads(cached.to_json())["fingerprint"] == described["fingerprint"]


def test_replaced_model_is_noticed(tuned, tiny):
    """A description of a model does not load another one that took its folder."""
    embed_model = NexusEmbedding(model=tuned)
    described = embed_model.to_dict()
    before = embed_model.get_query_embedding("a")
    with_query_head(tiny, seed=1).save(tuned)
    with pytest.raises(ValueError, match="the model was replaced since"):
        NexusEmbedding.from_dict(dict(described)).get_query_embedding("a")
    assert embed_model.get_query_embedding("a") == before  # bound on first use
    assert NexusEmbedding(model=tuned).get_query_embedding("a") != before


def test_pickle_carries_configuration(tuned):
    """A pickle is small, works in another place, and knows the fingerprint."""
    embed_model = NexusEmbedding(model=tuned, embed_batch_size=5, embeddings_cache=SimpleKVStore())
    vector = embed_model.get_query_embedding("a")
    data = pickle.dumps(NexusEmbedding(model=tuned))
    assert len(data) < 1000
    again = pickle.loads(pickle.dumps(embed_model))
    assert again.embed_batch_size == 5
    assert again.recorded_fingerprint == embed_model.fingerprint
    assert again.embeddings_cache.get_all("embeddings")  # the entries travel, too
    assert again.get_query_embedding("a") == vector


def test_encoder_in_memory_is_not_pickled(tiny):
    """An encoder that no folder holds cannot go to another process, and says so."""
    embed_model = NexusEmbedding.from_encoder(tiny)
    with pytest.raises(TypeError, match=r"save it with encoder\.save"):
        pickle.dumps(embed_model)
    with pytest.raises(ValueError, match=r"save it with encoder\.save"):
        NexusEmbedding.from_dict(embed_model.to_dict()).get_query_embedding("a")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: e.model_copy(deep=True)])
def test_copies_share_the_encoder(tuned, duplicate):
    """Copies, of a loaded instance with a cache too, hold the same weights."""
    embed_model = NexusEmbedding(model=tuned, embeddings_cache=SimpleKVStore())
    vector = embed_model.get_query_embedding("a")
    again = duplicate(embed_model)
    assert again.encoder is embed_model.encoder
    assert again.get_query_embedding("a") == vector
    assert NexusEmbedding(model=tuned).encoder is embed_model.encoder


def test_renamed_model_is_refused(tiny_model, tuned):
    """Changing the name after construction would mix models under one cache."""
    embed_model = NexusEmbedding(model=tiny_model).model_copy(update={"model_name": str(tuned)})
    with pytest.raises(ValueError, match="make a new NexusEmbedding"):
        embed_model.get_text_embedding("a")


# Async and events


async def test_event_loop_goes_on(table_encoder, monkeypatch):
    """While a batch is embedded, the loop ticks; batches queue in one thread."""
    encoder = table_encoder(dict.fromkeys(TEXTS, (1, 0)))
    encode, running, most = encoder.backbone.encode, [], []
    gate = threading.Event()

    def waiting(texts, role):
        running.append(1)
        most.append(len(running))
        assert gate.wait(60), "the event loop stands still"
        running.pop()
        return encode(texts, role)

    monkeypatch.setattr(encoder.backbone, "encode", waiting)
    embed_model = NexusEmbedding.from_encoder(encoder)
    embed_model.embed_batch_size = 1
    embed_model.micro_batching = False
    task = asyncio.create_task(embed_model.aget_text_embedding_batch(TEXTS))
    while not running:
        await asyncio.sleep(0.001)
    for _ in range(20):  # the model is at work, and the loop ticks
        await asyncio.sleep(0.001)
    assert not task.done()
    gate.set()
    assert len(await task) == len(TEXTS)
    assert max(most) == 1


@pytest.mark.parametrize("store", [None, SimpleKVStore()])
async def test_model_is_not_loaded_in_the_event_loop(tuned, monkeypatch, store):
    """The first async call loads the model in a thread, also with a cache."""
    threads = []
    load = DendriticEncoder.load
    monkeypatch.setattr(
        DendriticEncoder,
        "load",
        lambda *a, **k: threads.append(threading.current_thread().name) or load(*a, **k),
    )
    await NexusEmbedding(model=tuned, embeddings_cache=store).aget_query_embedding("a")
    assert [name.split("_")[0] for name in threads] == ["nexus-loading"]


async def test_async_equals_sync(tuned):
    """Every async method gives what its sync twin gives."""
    embed_model = NexusEmbedding(model=tuned, embed_batch_size=2, num_workers=2)
    batch = await embed_model.aget_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(batch, embed_model.get_text_embedding_batch(TEXTS), atol=1e-6)
    assert await embed_model.aget_query_embedding("a") == embed_model.get_query_embedding("a")
    assert await embed_model.aget_text_embedding("a") == embed_model.get_text_embedding("a")
    nodes = await embed_model.acall([TextNode(text="a")])
    assert nodes[0].embedding == embed_model.get_text_embedding("a")


def test_threads_share_one_instance(tuned):
    """Eight threads get the vectors that one gets, to 1e-6."""
    embed_model = NexusEmbedding(model=tuned)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(embed_model.get_query_embedding, TEXTS * 4))
    expected = [NexusEmbedding(model=tuned).get_query_embedding(text) for text in TEXTS]
    np.testing.assert_allclose(rows, expected * 4, atol=1e-6)


def test_one_event_pair_per_batch(tiny_model):
    """Instrumentation and callbacks see each batch once, and no path."""
    recorder, debug = Recorder(), LlamaDebugHandler(print_trace_on_end=False)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    embed_model = NexusEmbedding(
        model=tiny_model, embed_batch_size=2, callback_manager=CallbackManager([debug])
    )
    try:
        embed_model.get_text_embedding_batch(TEXTS)
        embed_model.get_query_embedding("a")
    finally:
        dispatcher.event_handlers.remove(recorder)
    starts = [e for e in recorder.events if isinstance(e, EmbeddingStartEvent)]
    ends = [e for e in recorder.events if isinstance(e, EmbeddingEndEvent)]
    assert len(starts) == 4
    assert [len(end.chunks) for end in ends] == [2, 2, 1, 1]
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 4
    assert str(tiny_model.parent) not in str(starts[0].model_dict)
    assert starts[0].model_dict["model_name"] == "(local folder)"


# Caches


def test_cache_keeps_roles_and_models_apart(tuned, tiny):
    """One store: a text's query and document vectors, and two models' queries, never mix."""
    store = SimpleKVStore()
    embed_model = NexusEmbedding(model=tuned, embeddings_cache=store)
    plain = NexusEmbedding(model=tuned)
    for _ in range(2):  # the second time from the cache
        assert embed_model.get_text_embedding("a") == plain.get_text_embedding("a")
        assert embed_model.get_query_embedding("a") == plain.get_query_embedding("a")
        assert embed_model.get_text_embedding_batch(["a"]) == [plain.get_text_embedding("a")]
    assert len(store.get_all("embeddings")) == 2
    other = NexusEmbedding.from_encoder(with_query_head(tiny, seed=1))
    other.embeddings_cache = store  # by assignment, too
    assert other.get_query_embedding("a") != embed_model.get_query_embedding("a")
    assert len(store.get_all("embeddings")) == 3
    other.get_text_embedding("a")  # its documents are the same as of the first model
    assert len(store.get_all("embeddings")) == 3


async def test_cache_by_async_methods(tuned):
    """The async methods read and write the same entries."""
    store = SimpleKVStore()
    embed_model = NexusEmbedding(model=tuned, embeddings_cache=store)
    query, texts = await asyncio.gather(
        embed_model.aget_query_embedding("a"), embed_model.aget_text_embedding_batch(["a", "b"])
    )
    assert len(store.get_all("embeddings")) == 3
    assert embed_model.get_query_embedding("a") == query
    assert embed_model.get_text_embedding_batch(["a", "b"]) == texts


def test_cache_is_hit(table_encoder):
    """A cached text does not reach the model again."""
    encoder = table_encoder({"a": (1, 0)})
    embed_model = NexusEmbedding.from_encoder(encoder)
    embed_model.embeddings_cache = SimpleKVStore()
    for _ in range(3):
        embed_model.get_query_embedding("a")
        embed_model.get_text_embedding("a")
    assert encoder.backbone.asked == [("query", "a"), ("document", "a")]


def test_ingestion_cache(tiny, tuned, monkeypatch):
    """Ingesting again with the same model embeds nothing; a re-tuned one in its folder does."""
    asked = []
    embed = NexusEmbedding._embed
    monkeypatch.setattr(
        NexusEmbedding,
        "_embed",
        lambda self, texts, role: asked.append(1) or embed(self, texts, role),
    )
    cache = IngestionCache()

    def ingest() -> list[float]:
        pipeline = IngestionPipeline(transformations=[NexusEmbedding(model=tuned)], cache=cache)
        return pipeline.run(nodes=[TextNode(id_="1", text="the fridge")])[0].embedding

    first = ingest()
    assert ingest() == first
    assert len(asked) == 1
    head = random_head(tiny.dimension)
    tiny.with_heads(query_head=head, document_head=head).save(tuned)
    assert ingest() != first
    assert len(asked) == 2


# Data


def test_datasets_are_taken_over(clinic):
    """A RetrievalDataset stays itself, LlamaIndex's layout becomes one, others are refused."""
    train = clinic[0]
    assert as_dataset(train) is train
    assert as_dataset(QADataset(train)).relevant_docs == train.relevant_docs
    with pytest.raises(TypeError, match="EmbeddingQAFinetuneDataset, got a dict"):
        as_dataset({})


def test_dataset_from_nodes():
    """Equal questions join their answers; the corpus holds the text that is embedded."""
    nodes = [
        TextNode(id_="a", text="first", metadata={"title": "T"}),
        TextNode(id_="b", text="second"),
    ]
    dataset = dataset_from_nodes([("why?", "a"), ("how?", ["a", "b"]), ("why?", "b")], nodes)
    assert dataset.queries == {"q0": "why?", "q1": "how?"}
    assert dataset.relevant_docs == {"q0": ["a", "b"], "q1": ["a", "b"]}
    assert dataset.corpus == {"a": "title: T\n\nfirst", "b": "second"}


# Fine-tuning


def test_engine_raises_ndcg(clinic, clinic_encoder):
    """A linear query head trained on the demo corpus answers the held-out questions better."""
    train, dev, test = clinic
    engine = NexusFinetuneEngine(
        QADataset(train),
        QADataset(dev),
        NexusEmbedding.from_encoder(clinic_encoder),
        FinetuneConfig(dendrites=0),
    )
    with pytest.raises(RuntimeError, match=r"call finetune\(\) first"):
        engine.get_finetuned_model()
    result = engine.finetune()
    assert result.score > result.baseline_score
    tuned = engine.get_finetuned_model()
    index = MemoryIndex(
        list(test.corpus), clinic_encoder.encode_documents(list(test.corpus.values()))
    )
    before = evaluate(DenseRetriever(index, clinic_encoder), test).metrics["ndcg@10"]
    assert evaluate(DenseRetriever(index, tuned.encoder), test).metrics["ndcg@10"] > before + 0.02


@pytest.fixture
def letters() -> RetrievalDataset:
    """Eight questions about the first of 26 letters."""
    return RetrievalDataset(
        queries={f"q{letter}": f"what is {letter}" for letter in "abcdefgh"},
        corpus={letter: f"about {letter}" for letter in ascii_lowercase},
        relevant_docs={f"q{letter}": [letter] for letter in "abcdefgh"},
    )


def test_engine_saves(letters, tiny_model, tmp_path):
    """With a path the tuned model is in that folder, and the returned one is loaded from it."""
    engine = NexusFinetuneEngine(
        letters,
        letters,
        NexusEmbedding(model=tiny_model, embed_batch_size=3),
        FinetuneConfig(dendrites=0, epochs=2),
        model_output_path=tmp_path / "tuned",
    )
    result = engine.finetune()
    tuned = engine.get_finetuned_model()
    assert (tuned.model_name, tuned.embed_batch_size) == (str(tmp_path / "tuned"), 3)
    assert tuned.fingerprint == result.encoder.fingerprint
    record = FinetuneResult.load(tmp_path / "tuned")  # for `nexus report`
    assert (record.fingerprint, record.history) == (tuned.fingerprint, result.history)


def test_engine_reads_the_index(letters, tiny_model):
    """With `index` no passage is embedded again, and the heads are those of embedding them."""
    embed_model = NexusEmbedding(model=tiny_model)
    nodes = [TextNode(id_=id_, text=text) for id_, text in letters.corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    config = FinetuneConfig(dendrites=0, epochs=2)
    from_texts = NexusFinetuneEngine(letters, letters, embed_model, config).finetune()
    encoder = embed_model.encoder
    for source in (index, index.vector_store, open_index(index)):
        asked = []
        counting = encoder.with_heads(query_head=None, document_head=None)
        counting.encode_documents = lambda texts, asked=asked: asked.append(texts)
        engine = NexusFinetuneEngine(
            letters, letters, NexusEmbedding.from_encoder(counting), config, index=source
        )
        from_index = engine.finetune()
        assert asked == []
        np.testing.assert_allclose(
            from_index.encoder.query_head.weight, from_texts.encoder.query_head.weight, atol=1e-5
        )
    with pytest.raises(NotImplementedError, match="vectors of a dict"):
        NexusFinetuneEngine(letters, letters, embed_model, config, index={}).finetune()


@pytest.mark.parametrize("saved", [True, False])
def test_the_tuned_model_runs_as_the_one_it_was_tuned_from(letters, tiny_model, tmp_path, saved):
    """No text in events where none was, the same precision, callbacks and sizes."""
    manager = CallbackManager([])
    before = NexusEmbedding(
        model=tiny_model,
        backend="torch",
        precision="bfloat16",
        embed_batch_size=5,
        micro_batching=False,
        redact_events=True,
        callback_manager=manager,
    )
    config = FinetuneConfig(dendrites=0, epochs=1)
    path = tmp_path / "tuned" if saved else None
    engine = NexusFinetuneEngine(letters, letters, before, config, model_output_path=path)
    engine.finetune()
    tuned = engine.get_finetuned_model()
    assert tuned.encoder.backbone.precision == "bfloat16"
    assert tuned.encoder.backbone.backend == "torch"
    assert (tuned.redact_events, tuned.micro_batching, tuned.embed_batch_size) == (True, False, 5)
    assert tuned.callback_manager is manager


def test_engine_keeps_the_model_when_saving_fails(letters, tiny_model, tmp_path):
    """A folder of something else is not overwritten, and the training is not lost."""
    (tmp_path / "notes.txt").write_text("mine")
    engine = NexusFinetuneEngine(
        letters,
        letters,
        NexusEmbedding(model=tiny_model),
        FinetuneConfig(dendrites=0, epochs=1),
        model_output_path=tmp_path,
    )
    with pytest.raises(FileExistsError, match="something other than a saved encoder"):
        engine.finetune()
    assert len(engine.get_finetuned_model().get_query_embedding("a")) == 16


def test_engine_needs_our_embedding(clinic):
    """Heads need a local encoder underneath."""
    with pytest.raises(TypeError, match="embed_model is a MockEmbedding"):
        NexusFinetuneEngine(clinic[0], embed_model=MockEmbedding(embed_dim=3))


# NUDGE


def test_retriever_sees_moved_vectors(nudgeable, tmp_path):
    """The retriever finds the answer after the nudge, and after persist and reload."""
    index, dataset, embed_model = nudgeable
    assert found(index) == "a"  # similarities .8 and .6
    report = NudgePostprocessor(
        dataset, embed_model=embed_model, config=NudgeConfig(gamma=1.0)
    ).apply(index)
    assert report.moved == 1
    # The second turns by acos(1 - 1/2) = 60 degrees, past the question, so it stops on it.
    np.testing.assert_allclose(index.vector_store.get("b"), [0.8, 0.6], atol=1e-6)
    assert all(type(value) is float for value in index.vector_store.get("b"))
    assert found(index) == "b"
    index.storage_context.persist(tmp_path)
    reloaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=embed_model
    )
    assert found(reloaded) == "b"
    assert reloaded.as_retriever(similarity_top_k=1).retrieve("question")[0].text == "second"


def test_undo_in_another_process(nudgeable, tmp_path):
    """A state folder undoes the nudge of an index that was persisted and loaded again."""
    index, dataset, embed_model = nudgeable
    settings = {"embed_model": embed_model, "state_dir": tmp_path / "state"}
    NudgePostprocessor(dataset, config=NudgeConfig(gamma=0.5), **settings).apply(index)
    index.storage_context.persist(tmp_path / "index")
    store = SimpleVectorStore.from_persist_dir(str(tmp_path / "index"), namespace="default")
    assert store.get("b") != [0.0, 1.0]
    later = NudgePostprocessor(dataset, **settings)
    assert later.undo(store) == 1
    assert store.get("b") == [0.0, 1.0]
    assert later.undo(store) == 0


@pytest.mark.parametrize("durable", [False, True])
def test_applying_twice_starts_from_base(nudgeable, tmp_path, durable):
    """Nudging again with the same settings changes nothing more; undo restores exactly."""
    index, dataset, embed_model = nudgeable
    nudge = NudgePostprocessor(
        dataset,
        embed_model=embed_model,
        config=NudgeConfig(gamma=0.1),
        state_dir=tmp_path if durable else None,
    )
    nudge.apply(index)
    once = list(index.vector_store.get("b"))
    # cos = 1 - .1/2 = .95 against its base (0, 1)
    assert once[1] == pytest.approx(0.95)
    nudge.apply(index.vector_store)
    assert index.vector_store.get("b") == once
    assert nudge.undo(index) == 1
    assert index.vector_store.get("b") == [0.0, 1.0]
    assert index.vector_store.get("a") == [1.0, 0.0]


def test_nudge_raises_ndcg(clinic, clinic_encoder):
    """On the demo corpus, with γ chosen on dev, the index answers its training questions better."""
    train, dev, _ = clinic
    embed_model = NexusEmbedding.from_encoder(clinic_encoder)
    nodes = [TextNode(id_=id_, text=text) for id_, text in train.corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    before = evaluate(DenseRetriever(open_index(index), clinic_encoder), dev).metrics["ndcg@10"]
    report = NudgePostprocessor(QADataset(train), dev, embed_model=embed_model).apply(index)
    assert report.chosen_by == "dev"
    after = evaluate(DenseRetriever(open_index(index), clinic_encoder), dev).metrics["ndcg@10"]
    assert after == pytest.approx(report.curve[report.gamma])
    assert after > before


def test_unknown_store(nudgeable):
    """A store of another kind is refused by name; a `VectorIndex` is taken as it is."""
    _, dataset, embed_model = nudgeable

    class OtherStore(BasePydanticVectorStore):
        stores_text: bool = True

        @property
        def client(self) -> None: ...
        def add(self, nodes, **_) -> list: ...
        def delete(self, ref_doc_id, **_) -> None: ...
        def query(self, query, **_) -> None: ...

    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=0.1))
    with pytest.raises(NotImplementedError, match=r"OtherStore cannot .* a SimpleVectorStore"):
        nudge.apply(OtherStore())
    index = MemoryIndex(["a", "b"], np.eye(2, dtype=np.float32))
    assert nudge.apply(index).moved == 1


def test_index_of_another_model(nudgeable, table_encoder):
    """Vectors of another dimension are refused before anything is written."""
    index, dataset, _ = nudgeable
    wide = NexusEmbedding.from_encoder(table_encoder({"question": (1, 0, 0)}))
    with pytest.raises(ValueError, match="dimension 3, the index holds 2"):
        NudgePostprocessor(dataset, embed_model=wide).apply(index)


class LongEmbedding(BaseEmbedding):
    """A foreign model: vectors of length five, queries apart from texts."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return [4.0, 3.0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return [4.0, 3.0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return [5.0, 0.0] if text == "first" else [0.0, 5.0]


def test_foreign_embedding_model(nudgeable):
    """Any embedding model nudges; its vectors keep their length; another name is another model."""
    _, dataset, _ = nudgeable
    nodes = [TextNode(id_="a", text="first"), TextNode(id_="b", text="second")]
    index = VectorStoreIndex(nodes, embed_model=LongEmbedding(model_name="long"))
    nudge = NudgePostprocessor(
        dataset, embed_model=LongEmbedding(model_name="long"), config=NudgeConfig(gamma=1.0)
    )
    assert nudge.encoder is nudge.encoder  # which embeds a word to learn the dimension
    nudge.apply(index)
    np.testing.assert_allclose(index.vector_store.get("b"), [4.0, 3.0], atol=1e-5)
    nudge.embed_model = LongEmbedding(model_name="long", embed_batch_size=99)
    nudge.apply(index)
    nudge.embed_model = LongEmbedding(model_name="other")
    with pytest.raises(ValueError, match="nudged with another encoder"):
        nudge.apply(index)
    assert nudge.undo(index) == 1


# NUDGE at query time, for stores that cannot be written


def retrieved(index, nudge, top_k: int = 2) -> list[tuple[str, float]]:
    """What a query engine retrieves with the postprocessor: ids and scores."""
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=top_k, node_postprocessors=[nudge]
    )
    return [
        (node.node_id, pytest.approx(node.score, abs=1e-6))
        for node in engine.retrieve(QueryBundle("question"))
    ]


def test_query_time(nudgeable):
    """The store stays as it is; what it found is ranked by the moved vectors, and none embedded."""
    index, dataset, embed_model = nudgeable
    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=1.0))
    assert retrieved(index, nudge) == [("a", 0.8), ("b", 0.6)]
    assert nudge.apply().moved == 1
    assert index.vector_store.get("b") == [0.0, 1.0]
    asked = embed_model.encoder.backbone.asked
    asked.clear()
    # The second document turns onto the question; the first keeps its cosine, 0.8.
    assert retrieved(index, nudge) == [("b", 1.0), ("a", 0.8)]
    assert asked == [("query", "question")]  # by the retriever, whose vector is used again
    nudge.top_n = 1
    assert retrieved(index, nudge) == [("b", 1.0)]
    assert nudge.undo() == 1
    assert retrieved(index, nudge) == [("a", 0.8)]


async def test_query_time_with_scores_in_another_unit(nudgeable):
    """Scores that are no cosines do not mix: candidates are embedded, each once."""
    _, dataset, embed_model = nudgeable
    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=1.0))
    nudge.apply()
    asked = embed_model.encoder.backbone.asked
    for scores, embedded in (((0.99, 0.9), [("document", "first")]), ((None, None), [])):
        asked.clear()
        nodes = [
            NodeWithScore(node=TextNode(id_=id_, text=text), score=score)
            for id_, text, score in zip("ab", ("first", "second"), scores, strict=True)
        ]
        found = await nudge.apostprocess_nodes(nodes, query_str="question")
        assert [(node.node_id, round(node.score, 6)) for node in found] == [("b", 1.0), ("a", 0.8)]
        assert asked == [("query", "question"), *embedded]


def test_query_time_leaves_a_nudged_store_alone(nudgeable):
    """After a nudge in the store the postprocessor returns what was retrieved."""
    index, dataset, embed_model = nudgeable
    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=0.1))
    nudge.apply(index)
    nodes = index.as_retriever(similarity_top_k=2).retrieve("question")
    assert nudge.postprocess_nodes(nodes, query_str="question") == nodes


def test_query_time_learns_and_forgets_in_another_process(nudgeable, tmp_path):
    """Observations move documents without a store, and reach an object that is at work."""
    index, dataset, embed_model = nudgeable
    settings = {"embed_model": embed_model, "config": NudgeConfig(gamma=0.5)}
    serving = NudgePostprocessor(dataset, state_dir=tmp_path, **settings)
    serving.apply()
    # It turns by acos(1 - .5/2) of the angle acos(.6): cos(acos .6 - acos .75).
    turned = 0.6 * 0.75 + 0.8 * np.sqrt(1 - 0.75**2)
    assert retrieved(index, serving)[0] == ("b", turned)
    other = NudgePostprocessor(dataset, state_dir=str(tmp_path), **settings)
    other.observe(None, "question", "a", query_id="seen")
    assert retrieved(index, serving) == [("a", 1.0), ("b", turned)]
    assert other.forget(None, "seen").questions == 1
    assert retrieved(index, serving)[1] == ("a", 0.8)
    assert other.refresh(corpus={"a": "first"}, force=True) == {
        "deleted": 1,
        "changed": 0,
        "moved": 0,
    }
    assert retrieved(index, serving) == [("a", 0.8), ("b", 0.6)]
    stranger = NudgePostprocessor(
        dataset, state_dir=tmp_path, embed_model=LongEmbedding(model_name="long")
    )
    other.apply()
    with pytest.raises(ValueError, match="of another encoder"):
        retrieved(index, stranger)


def test_query_time_warns_of_few_candidates(table_encoder):
    """Ten candidates of sixty passages are too few to bring an answer up."""
    encoder = table_encoder({"question": (1, 0), **{f"t{n}": (1, n) for n in range(60)}})
    embed_model = NexusEmbedding.from_encoder(encoder)
    nodes = [TextNode(id_=f"t{n}", text=f"t{n}") for n in range(60)]
    dataset = dataset_from_nodes([("question", "t5")], nodes)
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    nudge = NudgePostprocessor(dataset, embed_model=embed_model, config=NudgeConfig(gamma=1.0))
    nudge.apply()
    turned = np.cos(np.arctan(5) - np.pi / 3)  # by 60 degrees, acos(1 - 1/2)
    with pytest.warns(UserWarning, match="got 10 candidates"):
        assert retrieved(index, nudge, 10)[:2] == [("t0", 1.0), ("t5", turned)]
    assert len(retrieved(index, nudge, 50)) == 50
