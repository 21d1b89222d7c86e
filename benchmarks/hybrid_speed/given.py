"""Embedding models of the core and of both frameworks that know the questions' vectors."""

from typing import Any

from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from benchmarks.hybrid_speed.corpus import Corpus
from benchmarks.nudge_scale import GivenVectors


class Asked(GivenVectors):
    """An encoder that knows the questions' vectors; other texts get the first one."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.vectors())
        self.texts = corpus.questions()
        self._rows = {text: row for row, text in enumerate(self.texts)}

    def encode_queries(self, texts: Any) -> Any:
        """Return the rows of known questions."""
        return self._vectors[[self._rows.get(text, 0) for text in texts]]

    def listed(self, text: str) -> list[float]:
        """Return a question's vector as a list."""
        found: list[float] = self.encode_queries([text])[0].tolist()
        return found


class AskedByLangChain(Embeddings):
    """The same as LangChain's `Embeddings`."""

    def __init__(self, corpus: Corpus) -> None:
        self.asked = Asked(corpus)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the rows of known questions."""
        return [self.asked.listed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the row of a known question."""
        return self.asked.listed(text)


class AskedByLlamaIndex(BaseEmbedding):
    """The same as LlamaIndex's `BaseEmbedding`."""

    _asked: Asked = PrivateAttr()

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(model_name="given")
        self._asked = Asked(corpus)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._asked.listed(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._asked.listed(text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._asked.listed(query)
