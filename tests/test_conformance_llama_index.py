"""What LlamaIndex asks of an embedding model, beyond the trap tests: pipelines, events, workers.

`nox -s versions` runs this file under the oldest and the newest supported version.
"""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from llama_index.core import (
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore

from nexus_integrations import DendriticEncoder, DendriticHead
from nexus_integrations.llama_index import NexusEmbedding

SECRET = "the goldie is broken"
TEXTS = [SECRET, "the fridge", "the stairs", "a form", "x"]


def with_head(encoder: DendriticEncoder, *, document: bool, seed: int = 0) -> DendriticEncoder:
    """Return the encoder with a random linear head on queries, or on documents."""
    head = DendriticHead.untrained(encoder.dimension)
    head = replace(head, weight=np.random.default_rng(seed).normal(size=head.weight.shape))
    return encoder.with_heads(
        query_head=None if document else head, document_head=head if document else None
    )


@pytest.fixture
def tuned(tiny, tmp_path):
    """The folder of an encoder whose query head changes queries and no document."""
    with_head(tiny, document=False).save(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def asked(table_encoder):
    """An encoder of two documents and a question, nearest to the first, that keeps its calls."""
    return table_encoder({"first": (1, 0), "second": (0, 1), "question": (0.8, 0.6)})


class Limiter:
    """Counts what it is asked for, in the shape of LlamaIndex's rate limiters."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def acquire(self) -> None:
        self.calls.append("sync")

    async def async_acquire(self) -> None:
        self.calls.append("async")


@pytest.mark.skipif(
    "rate_limiter" not in BaseEmbedding.model_fields, reason="this LlamaIndex has none"
)
async def test_rate_limiter_is_asked_once_per_batch(tiny_model):
    """The inherited limiter holds for our model as for any."""
    limiter = Limiter()
    embed_model = NexusEmbedding(model=tiny_model, embed_batch_size=2, rate_limiter=limiter)
    embed_model.get_text_embedding_batch(TEXTS)
    await embed_model.aget_text_embedding_batch(TEXTS)
    await embed_model.aget_query_embedding("x")
    assert limiter.calls == ["sync"] * 3 + ["async"] * 4


async def test_num_workers_bounds_batches_and_keeps_their_order(table_encoder):
    """With workers each batch is embedded once, and rows come back in the order of texts."""
    vectors = {f"t{number}": (1, number) for number in range(9)}
    encoder = table_encoder(vectors)
    embed_model = NexusEmbedding.from_encoder(encoder)
    embed_model.embed_batch_size, embed_model.num_workers = 2, 2
    rows = await embed_model.aget_text_embedding_batch(list(vectors))
    np.testing.assert_array_equal(rows, encoder.encode_documents(list(vectors)))


# Events


class Recorder(BaseEventHandler):
    """Keeps every event that it sees, as JSON."""

    events: list = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event, **_) -> None:
        self.events.append((event.class_name(), event.model_dump_json()))


@pytest.fixture
def observers():
    """An event handler and a span handler on LlamaIndex's root dispatcher."""
    recorder, spans = Recorder(), SimpleSpanHandler()
    root = get_dispatcher()
    root.add_event_handler(recorder)
    root.add_span_handler(spans)
    arguments = []
    enter = spans.new_span
    # The handler keeps no arguments by itself; those that do get them here.
    object.__setattr__(
        spans,
        "new_span",
        lambda id_, bound_args, *rest, **more: (
            arguments.append((id_, repr(bound_args.arguments)))
            or enter(id_, bound_args, *rest, **more)
        ),
    )
    yield recorder, arguments
    root.event_handlers.remove(recorder)
    root.span_handlers.remove(spans)


@pytest.mark.parametrize("cached", [False, True])
async def test_redacted_events_hold_no_text(tuned, observers, cached):
    """With `redact_events` no event, callback or span of the model holds a text, and vectors,
    caches and the number of events stay what they are."""
    recorder, arguments = observers
    debug = LlamaDebugHandler(print_trace_on_end=False)
    store = SimpleKVStore()
    embed_model = NexusEmbedding(
        model=tuned,
        embed_batch_size=2,
        redact_events=True,
        callback_manager=CallbackManager([debug]),
        embeddings_cache=store if cached else None,
    )
    node = TextNode(text=SECRET)
    rows = [
        embed_model.get_query_embedding(SECRET),
        *embed_model.get_text_embedding_batch(TEXTS),
        embed_model.get_text_embedding(SECRET),
        await embed_model.aget_query_embedding(SECRET),
        await embed_model.aget_text_embedding(SECRET),
        *await embed_model.aget_text_embedding_batch(TEXTS),
        embed_model([node])[0].embedding,
        (await embed_model.acall([node]))[0].embedding,
    ]
    told = [
        *(text for _, text in recorder.events),
        *(repr(event.payload) for event in debug.get_events()),
        *(text for _, text in arguments),
    ]
    assert len(told) > 40
    assert not [one for one in told if SECRET in one or "goldie" in one]
    ends = [json.loads(text) for name, text in recorder.events if name == "EmbeddingEndEvent"]
    assert [len(end["chunks"]) for end in ends] == [1, 2, 2, 1, 1, 1, 1, 2, 2, 1, 1, 1]
    assert ends[1]["chunks"] == ["(redacted 0)", "(redacted 1)"]
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 12

    plain = NexusEmbedding(model=tuned)
    query = plain.get_query_embedding(SECRET)
    texts = plain.get_text_embedding_batch(TEXTS)
    expected = [query, *texts, texts[0], query, texts[0], *texts, texts[0], texts[0]]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    if cached:
        keys = list(store.get_all("embeddings"))
        assert len(keys) == len(TEXTS) + 1
        assert all(key.rpartition(":")[2] in TEXTS for key in keys)


async def test_unredacted_events_are_llama_indexs_own(tiny_model, observers):
    """By default events hold the texts, one pair per batch, and each call has one span."""
    recorder, arguments = observers
    embed_model = NexusEmbedding(model=tiny_model, embed_batch_size=2)
    embed_model.get_text_embedding_batch(TEXTS)
    await embed_model.aget_text_embedding_batch(TEXTS)
    names = [name for name, _ in recorder.events]
    assert names.count("EmbeddingStartEvent") == names.count("EmbeddingEndEvent") == 6
    assert any(SECRET in text for _, text in recorder.events)
    calls = [id_ for id_, _ in arguments if ".get_text_embedding_batch-" in id_]
    assert len(calls) == 1


@pytest.mark.parametrize(
    "place", ["root", "llama_index.core.base.embeddings.base", "callbacks", "nowhere"]
)
async def test_a_query_is_reported_wherever_an_observer_is(table_encoder, place, monkeypatch):
    """A handler of any dispatcher on the way, or of callbacks, sees it; without one no event is."""
    recorder, debug = Recorder(), LlamaDebugHandler(print_trace_on_end=False)
    embed_model = NexusEmbedding.from_encoder(table_encoder({"goldie": (1, 0)}))
    made = []
    monkeypatch.setattr(
        "llama_index.core.base.embeddings.base.EmbeddingStartEvent",
        lambda **how: made.append(how) or EmbeddingStartEvent(**how),
    )
    if place == "callbacks":
        embed_model.callback_manager = CallbackManager([debug])
    elif place != "nowhere":
        handlers = get_dispatcher(place).event_handlers
        monkeypatch.setattr(get_dispatcher(place), "event_handlers", [*handlers, recorder])
    assert embed_model.get_query_embedding("goldie") == [1, 0]
    assert await embed_model.aget_query_embedding("goldie") == [1, 0]
    assert len(made) == (0 if place == "nowhere" else 2)
    ends = [text for name, text in recorder.events if name == "EmbeddingEndEvent"]
    assert len(ends) == (2 if place not in ("callbacks", "nowhere") else 0)
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == (2 if place == "callbacks" else 0)


@pytest.mark.parametrize("place", ["root", "nexus_integrations.llama_index.embedding"])
def test_a_query_has_its_span_wherever_a_span_handler_is(table_encoder, place, monkeypatch):
    """On the root dispatcher or on this class's own, with no other observer."""
    spans = SimpleSpanHandler()
    handlers = get_dispatcher(place).span_handlers
    monkeypatch.setattr(get_dispatcher(place), "span_handlers", [*handlers, spans])
    embed_model = NexusEmbedding.from_encoder(table_encoder({"goldie": (1, 0)}))
    assert embed_model.get_query_embedding("goldie") == [1, 0]
    assert any("._get_query_embedding-" in span.id_ for span in spans.completed_spans)


def test_another_class_embeds_its_own_way(table_encoder):
    """What a class that is derived from ours says about a query holds, observed or not."""

    class Instructed(NexusEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return super()._get_query_embedding(f"find {query}")

    embed_model = Instructed.from_encoder(table_encoder({"find it": (0, 1)}))
    assert embed_model.get_query_embedding("it") == [0, 1]


def test_redaction_travels(tuned):
    """A model made from a dictionary or a pickle redacts as the first does."""
    embed_model = NexusEmbedding(model=tuned, redact_events=True)
    assert NexusEmbedding.from_dict(embed_model.to_dict()).redact_events
    assert pickle.loads(pickle.dumps(embed_model)).redact_events


def test_redaction_leaves_errors_as_they_are(tiny_model):
    """What is no text is refused by its place."""
    embed_model = NexusEmbedding(model=tiny_model, redact_events=True)
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        embed_model.get_text_embedding_batch(["a", None])


# Ingestion


def documents() -> list[LlamaDocument]:
    return [LlamaDocument(text=text, id_=f"d{n}") for n, text in enumerate(TEXTS)]


def test_pipeline_with_cache_and_docstore(tiny, tmp_path, monkeypatch):
    """Unchanged documents are skipped, a model that stayed hits the cache, a re-tuned one in
    the same folder never does, and a head on queries alone leaves stored vectors valid."""
    calls = []
    embed = NexusEmbedding._embed
    monkeypatch.setattr(
        NexusEmbedding,
        "_embed",
        lambda self, texts, role: calls.extend(texts) or embed(self, texts, role),
    )
    tiny.save(tmp_path / "model")
    cache, docstore, store = IngestionCache(), SimpleDocumentStore(), SimpleVectorStore()

    def ingest(found, docstore=docstore):
        calls.clear()
        pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(),
                NexusEmbedding(model=tmp_path / "model"),
            ],
            cache=cache,
            docstore=docstore,
            vector_store=store,
        )
        return pipeline.run(documents=found)

    first = ingest(documents())
    assert len(first) == len(calls) == 5
    assert ingest(documents()) == []  # the docstore knows them all
    changed = [*documents()[:4], LlamaDocument(text="y", id_="d4")]
    assert [node.ref_doc_id for node in ingest(changed)] == ["d4"]
    assert calls == ["y"]
    assert len(store.data.embedding_dict) == 5  # the old vector of d4 is gone

    again = ingest(documents(), docstore=SimpleDocumentStore())
    assert calls == []  # from the cache: model and texts are those of the first run
    assert [node.embedding for node in again] == [node.embedding for node in first]

    with_head(tiny, document=True).save(tmp_path / "model")
    tuned = ingest(documents(), docstore=SimpleDocumentStore())
    assert len(calls) == 5
    assert all(a.embedding != b.embedding for a, b in zip(tuned, first, strict=True))


def test_spawned_workers_embed_alike(tuned):
    """Two spawned processes load the model by its name and give the same vectors."""
    pipeline = IngestionPipeline(transformations=[NexusEmbedding(model=tuned)])
    nodes = pipeline.run(documents=documents(), num_workers=2)
    expected = NexusEmbedding(model=tuned).get_text_embedding_batch(TEXTS)
    found = {node.ref_doc_id or node.node_id: node.embedding for node in nodes}
    np.testing.assert_allclose([found[f"d{n}"] for n in range(5)], expected, atol=1e-6)


def test_index_persists_and_reloads(tuned, tmp_path):
    """`Settings` gives the model to an index, and the reloaded index answers as before."""
    before = Settings._embed_model
    Settings.embed_model = NexusEmbedding(model=tuned)
    try:
        nodes = [TextNode(id_=text, text=text, metadata={"page": 1}) for text in TEXTS]
        index = VectorStoreIndex(nodes)
        answer = index.as_retriever(similarity_top_k=3).retrieve("the fridge")
        index.storage_context.persist(tmp_path / "index")
        storage = StorageContext.from_defaults(persist_dir=str(tmp_path / "index"))
        again = load_index_from_storage(storage).as_retriever(similarity_top_k=3)
        for one, other in zip(answer, again.retrieve("the fridge"), strict=True):
            assert (one.node_id, one.score) == (other.node_id, pytest.approx(other.score))
        expected = Settings.embed_model.get_text_embedding(nodes[0].get_content(MetadataMode.EMBED))
        np.testing.assert_allclose(index.vector_store.get(SECRET), expected, atol=1e-6)
    finally:
        Settings._embed_model = before


async def test_retriever_evaluator(asked):
    """LlamaIndex's own evaluation sees ranks by the query's vector."""
    embed_model = NexusEmbedding.from_encoder(asked)
    nodes = [TextNode(id_=text, text=text) for text in ("first", "second")]
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    evaluator = RetrieverEvaluator.from_metric_names(
        ["mrr", "hit_rate"], retriever=index.as_retriever(similarity_top_k=2)
    )
    result = await evaluator.aevaluate("question", ["second"])
    # The similarities are .8 and .6, so the answer is second.
    assert result.metric_vals_dict == {"mrr": 0.5, "hit_rate": 1.0}
