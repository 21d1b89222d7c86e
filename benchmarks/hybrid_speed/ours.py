"""Our retrievers: of the core, and the one in each framework."""

import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.hybrid_speed.corpus import Corpus
from benchmarks.hybrid_speed.systems import K
from nexus_integrations import LexicalIndex

WEIGHT = 0.5


class Ours:
    """`HybridRetriever` over a `LexicalIndex` in a folder."""

    imports: tuple[str, ...] = ("chromadb", "tantivy", "nexus_integrations.index.chroma")

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        self.changes = 0

    def build(self) -> None:
        """Fill a new folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        LexicalIndex(self.folder).fill(self.corpus.passages())

    def open(self) -> Callable[[int], list[str]]:
        """Open both sides."""
        from benchmarks.hybrid_speed.given import Asked
        from nexus_integrations import HybridRetriever
        from nexus_integrations.index.chroma import ChromaIndex

        self.words = LexicalIndex(self.folder)
        index, encoder = ChromaIndex(self.corpus.collection()), Asked(self.corpus)
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


class InLlamaIndex(Ours):
    """`NexusRetriever` of LlamaIndex over the same words."""

    imports = ("chromadb", "llama_index.vector_stores.chroma", "nexus_integrations.llama_index")

    def open(self) -> Callable[[int], list[str]]:
        """Open the store and the words."""
        from llama_index.core import VectorStoreIndex
        from llama_index.vector_stores.chroma import ChromaVectorStore

        from benchmarks.hybrid_speed.given import AskedByLlamaIndex
        from nexus_integrations.llama_index import NexusRetriever

        store = ChromaVectorStore(chroma_collection=self.corpus.collection())
        embedding = AskedByLlamaIndex(self.corpus)
        self.words = LexicalIndex(self.folder)
        retriever = NexusRetriever(
            VectorStoreIndex.from_vector_store(store, embed_model=embedding),
            self.words,
            weight=WEIGHT,
            similarity_top_k=K,
        )
        texts = self.corpus.questions()
        return lambda number: [found.node_id for found in retriever.retrieve(texts[number])]


class InLangChain(Ours):
    """`NexusRetriever` of LangChain over the same words."""

    imports = ("chromadb", "langchain_chroma", "nexus_integrations.langchain")

    def open(self) -> Callable[[int], list[str]]:
        """Open the store and the words."""
        from benchmarks.hybrid_speed.peers import langchain_store
        from nexus_integrations.langchain import NexusRetriever

        self.words = LexicalIndex(self.folder)
        retriever = NexusRetriever(
            vectorstore=langchain_store(self.corpus), lexical=self.words, weight=WEIGHT, k=K
        )
        texts = self.corpus.questions()
        return lambda number: [str(found.id) for found in retriever.invoke(texts[number])]
