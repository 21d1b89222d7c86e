"""The systems that are compared; each opens the same Chroma folder and its own words."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.hybrid_speed.corpus import COLLECTION, Corpus
from benchmarks.nudge_scale import GivenVectors

K = 10
DEPTH = 10  # passages that the peers take from each side, which is what they return
WEIGHT = 0.5


class System(Protocol):
    """A way to search; its words lie in `folder`, where it can keep them."""

    def __init__(self, corpus: Corpus, folder: Path) -> None: ...

    def build(self) -> None:
        """Index the words of all passages."""
        ...

    def open(self) -> Callable[[int], list[str]]:
        """Open vectors and words; return the search: question number to passage ids."""
        ...

    def add(self, text: str) -> None:
        """Make the words of one passage more searchable, after `open`."""
        ...

    def observe(self, text: str) -> None:
        """Let one passage be found by the words of a question, after `open`."""
        ...


class Store:
    """The store's own query by vector alone."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def build(self) -> None:
        """Do nothing: there are no words."""

    def open(self) -> Callable[[int], list[str]]:
        """Open the collection."""
        collection, vectors = self.corpus.collection(), self.corpus.vectors()

        def search(number: int) -> list[str]:
            found = collection.query(query_embeddings=vectors[number : number + 1], n_results=K)
            ids: list[str] = found["ids"][0]
            return ids

        return search

    def add(self, text: str) -> None:
        """Do nothing: there are no words."""

    def observe(self, text: str) -> None:
        """Do nothing: there are no words."""


class Ours:
    """`HybridRetriever` over a `LexicalIndex` in a folder."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        self.changes = 0

    def build(self) -> None:
        """Fill a new folder."""
        from nexus_integrations import LexicalIndex

        shutil.rmtree(self.folder, ignore_errors=True)
        LexicalIndex(self.folder).fill(self.corpus.passages())

    def open(self) -> Callable[[int], list[str]]:
        """Open both sides."""
        from nexus_integrations import HybridRetriever, LexicalIndex
        from nexus_integrations.index.chroma import ChromaIndex

        self.words = LexicalIndex(self.folder)
        index, encoder = ChromaIndex(self.corpus.collection()), _Asked(self.corpus)
        retriever = HybridRetriever(index, encoder, self.words, weight=WEIGHT)
        return lambda number: retriever.search([encoder.texts[number]], K).ids[0]

    def add(self, text: str) -> None:
        """Commit one passage."""
        self.changes += 1
        self.words.add([f"added {self.changes}"], [text])

    def observe(self, text: str) -> None:
        """Commit one question."""
        self.changes += 1
        self.words.observe(f"question {self.changes}", text, ["passage 0"])


class _Asked(GivenVectors):
    """An encoder that knows the questions' vectors."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.vectors())
        self.texts = corpus.questions()
        self._rows = {text: row for row, text in enumerate(self.texts)}

    def encode_queries(self, texts: Any) -> Any:
        """Return the rows of known questions."""
        return self._vectors[[self._rows[text] for text in texts]]


class LlamaIndexPeer:
    """`BM25Retriever` and a vector retriever in `QueryFusionRetriever`."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def build(self) -> None:
        """Index all nodes and persist them."""
        self._indexed(self.corpus.passages()).persist(str(self.folder))

    def open(self) -> Callable[[int], list[str]]:
        """Open the persisted words and the store."""
        from llama_index.core import VectorStoreIndex
        from llama_index.core.embeddings import MockEmbedding
        from llama_index.core.llms import MockLLM
        from llama_index.core.retrievers import QueryFusionRetriever
        from llama_index.core.schema import QueryBundle
        from llama_index.retrievers.bm25 import BM25Retriever
        from llama_index.vector_stores.chroma import ChromaVectorStore

        words = BM25Retriever.from_persist_dir(str(self.folder))
        words.similarity_top_k = DEPTH
        store = ChromaVectorStore(chroma_collection=self.corpus.collection())
        vectors, texts = self.corpus.vectors(), self.corpus.questions()
        embedding = MockEmbedding(embed_dim=vectors.shape[1])
        near = VectorStoreIndex.from_vector_store(store, embed_model=embedding).as_retriever(
            similarity_top_k=DEPTH
        )
        fusion = QueryFusionRetriever(
            [near, words],
            llm=MockLLM(),
            mode="reciprocal_rerank",
            similarity_top_k=K,
            num_queries=1,
            use_async=False,
        )

        def search(number: int) -> list[str]:
            # With the vector given, nothing is embedded.
            bundle = QueryBundle(texts[number], embedding=vectors[number].tolist())
            return [found.node_id for found in fusion.retrieve(bundle)]

        return search

    def add(self, text: str) -> None:
        """Index all passages again: a `BM25Retriever` takes no more."""
        self._indexed({**self.corpus.passages(), "added": text}).persist(str(self.folder))

    def observe(self, text: str) -> None:
        """Index all passages again, one with the words of the question."""
        passages = self.corpus.passages()
        passages["passage 0"] += f" {text}"
        self._indexed(passages).persist(str(self.folder))

    def _indexed(self, passages: dict[str, str]) -> Any:
        from llama_index.core.schema import TextNode
        from llama_index.retrievers.bm25 import BM25Retriever

        nodes = [
            TextNode(id_=id_, text=text, metadata={"source": "synthetic"})
            for id_, text in passages.items()
        ]
        return BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=DEPTH)


class LangChainPeer:
    """`BM25Retriever` and a vector store in `EnsembleRetriever`; the words cannot be saved."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def build(self) -> None:
        """Index all documents, for this process alone."""
        self._indexed(self.corpus.passages())

    def open(self) -> Callable[[int], list[str]]:
        """Open the store and index the words of all its passages again."""
        from langchain_chroma import Chroma
        from langchain_classic.retrievers import EnsembleRetriever
        from langchain_core.embeddings import Embeddings

        encoder = _Asked(self.corpus)

        class Given(Embeddings):
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                raise AssertionError("a document is embedded")

            def embed_query(self, text: str) -> list[float]:
                found: list[float] = encoder.encode_queries([text])[0].tolist()
                return found

        store = Chroma(
            client=self.corpus.client(),
            collection_name=COLLECTION,
            embedding_function=Given(),
            collection_configuration={"hnsw": {"space": "cosine"}},
        )
        near = store.as_retriever(search_kwargs={"k": DEPTH})
        words = self._indexed(self.corpus.passages())
        ensemble = EnsembleRetriever(retrievers=[near, words])

        def search(number: int) -> list[str]:
            return [found.id for found in ensemble.invoke(encoder.texts[number])[:K]]

        return search

    def add(self, text: str) -> None:
        """Index all documents again: a `BM25Retriever` takes no more."""
        self._indexed({**self.corpus.passages(), "added": text})

    def observe(self, text: str) -> None:
        """Index all documents again, one with the words of the question."""
        passages = self.corpus.passages()
        passages["passage 0"] += f" {text}"
        self._indexed(passages)

    def _indexed(self, passages: dict[str, str]) -> Any:
        from langchain_community.retrievers import BM25Retriever
        from langchain_core.documents import Document

        documents = [
            Document(page_content=text, metadata={"source": "synthetic"}, id=id_)
            for id_, text in passages.items()
        ]
        return BM25Retriever.from_documents(documents, k=DEPTH)


SYSTEMS: dict[str, type[System]] = {
    "store alone": Store,
    "HybridRetriever": Ours,
    "LlamaIndex": LlamaIndexPeer,
    "LangChain": LangChainPeer,
}
