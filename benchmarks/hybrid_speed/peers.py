"""The frameworks' own: BM25 beside a vector retriever, fused by rank with equal weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hybrid_speed.corpus import COLLECTION, Corpus
from benchmarks.hybrid_speed.systems import DEPTH, K


class LlamaIndexPeer:
    """`BM25Retriever` and a vector retriever in `QueryFusionRetriever`."""

    imports: tuple[str, ...] = (
        *("chromadb", "llama_index.vector_stores.chroma", "llama_index.retrievers.bm25"),
        "llama_index.core.retrievers",
    )

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def build(self) -> None:
        """Index all nodes and persist them."""
        self._indexed(self.corpus.passages()).persist(str(self.folder))

    def open(self) -> Callable[[int], list[str]]:
        """Open the persisted words and the store."""
        from llama_index.core import VectorStoreIndex
        from llama_index.core.llms import MockLLM
        from llama_index.core.retrievers import QueryFusionRetriever
        from llama_index.retrievers.bm25 import BM25Retriever
        from llama_index.vector_stores.chroma import ChromaVectorStore

        from benchmarks.hybrid_speed.given import AskedByLlamaIndex

        words = BM25Retriever.from_persist_dir(str(self.folder))
        words.similarity_top_k = DEPTH
        store = ChromaVectorStore(chroma_collection=self.corpus.collection())
        embedding = AskedByLlamaIndex(self.corpus)
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

        texts = self.corpus.questions()
        return lambda number: [found.node_id for found in fusion.retrieve(texts[number])]

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


def langchain_store(corpus: Corpus) -> Any:
    """Open the Chroma folder as LangChain's vector store."""
    from langchain_chroma import Chroma

    from benchmarks.hybrid_speed.given import AskedByLangChain

    return Chroma(
        client=corpus.client(),
        collection_name=COLLECTION,
        embedding_function=AskedByLangChain(corpus),
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


class LangChainPeer:
    """`BM25Retriever` and a vector store in `EnsembleRetriever`; the words cannot be saved."""

    imports: tuple[str, ...] = (
        *("chromadb", "langchain_chroma", "langchain_community.retrievers"),
        *("langchain_classic.retrievers", "rank_bm25"),
    )

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def build(self) -> None:
        """Index all documents, for this process alone."""
        self._indexed(self.corpus.passages())

    def open(self) -> Callable[[int], list[str]]:
        """Open the store and index the words of all its passages again."""
        from langchain_classic.retrievers import EnsembleRetriever

        near = langchain_store(self.corpus).as_retriever(search_kwargs={"k": DEPTH})
        words = self._indexed(self.corpus.passages())
        ensemble = EnsembleRetriever(retrievers=[near, words])
        texts = self.corpus.questions()

        def search(number: int) -> list[str]:
            return [found.id for found in ensemble.invoke(texts[number])[:K]]

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
