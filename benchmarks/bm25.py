"""Plain BM25 by bm25s, the engine of LlamaIndex's `BM25Retriever`: the words that others use."""

from collections.abc import Mapping, Sequence

import bm25s
import numpy as np
import Stemmer

from nexus_integrations.protocols import Hits

_STOP_WORDS = {"english": "en", "spanish": "es"}


class PlainBM25:
    """BM25 (k1 1.2, b .75) over Snowball stems without stop words."""

    def __init__(self, corpus: Mapping[str, str], language: str) -> None:
        """Index passages, id to text."""
        self.ids = list(corpus)
        self._stemmer = Stemmer.Stemmer(language)
        self._stop_words = _STOP_WORDS[language]
        self._engine = bm25s.BM25(k1=1.2, b=0.75)
        self._engine.index(self._terms(list(corpus.values())), show_progress=False)

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k best passages of each text that have a word of it, best first."""
        k = min(k, len(self.ids))
        rows, scores = self._engine.retrieve(self._terms(texts), k=k, show_progress=False)
        ids = [
            [self.ids[row] for row, score in zip(*found, strict=True) if score > 0]
            for found in zip(rows, scores, strict=True)
        ]
        similarities = np.where(scores > 0, scores, -np.inf).astype(np.float32)
        return Hits(ids, similarities)

    def _terms(self, texts: Sequence[str]) -> list[list[str]]:
        terms: list[list[str]] = bm25s.tokenize(
            list(texts),
            stopwords=self._stop_words,
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )
        return terms
