"""Synthetic passages, questions and vectors, and a Chroma folder that holds them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nexus_integrations.protocols import Floats

COLLECTION = "passages"
DIMENSION = 384
LENGTH = 80  # words of a passage
QUESTIONS = 300
_VOCABULARY = 50_000
_COMMON = (  # noqa: SIM905
    "the of and a to in is it you that he was for on are with as his they be at one have this from "
    "or had by not but what all were when we there can an your which their if do will each about"
).split()
_BLOCK = 10_000  # passages that are made at a time


@dataclass(frozen=True)
class Corpus:
    """Where the passages, the questions with their vectors, and the Chroma folder are."""

    folder: Path

    def passages(self) -> dict[str, str]:
        """Return the texts by id."""
        with (self.folder / "passages.jsonl").open(encoding="utf-8") as file:
            return {row["id"]: row["text"] for row in map(json.loads, file)}

    def questions(self) -> list[str]:
        """Return the questions' texts."""
        found: list[str] = json.loads((self.folder / "questions.json").read_text(encoding="utf-8"))
        return found

    def vectors(self) -> Floats:
        """Return the questions' vectors: float32 (n_questions, 384)."""
        found: Floats = np.load(self.folder / "questions.npy")
        return found

    def client(self) -> Any:
        """Open the Chroma folder."""
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(str(self.folder / "chroma"), settings)

    def collection(self) -> Any:
        """Open the Chroma collection, which exists after `make`."""
        return self.client().get_collection(COLLECTION, embedding_function=None)

    @classmethod
    def make(cls, folder: Path, size: int) -> "Corpus":
        """Write `size` passages and the questions, and fill the Chroma folder."""
        rng = np.random.default_rng(0)
        words = np.array(_words())
        # Zipf's law, shifted as Mandelbrot does; the commonest words are English stop words.
        share = 1 / (np.arange(len(words)) + 2.7)
        share /= share.sum()
        corpus = cls(folder)
        client = corpus.client()
        client.create_collection(
            COLLECTION, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        for start in range(0, size, _BLOCK):
            count = min(_BLOCK, size - start)
            chosen = rng.choice(len(words), (count, LENGTH), p=share)
            vectors = _unit(rng.standard_normal((count, DIMENSION), dtype=np.float32))
            texts = [" ".join(words[row]) for row in chosen]
            corpus._append(start, texts, vectors, client.get_max_batch_size())
            if not start:
                corpus._ask(rng, words, chosen, vectors)
        return corpus

    def _append(self, start: int, texts: list[str], vectors: Floats, step: int) -> None:
        """Write passages to the file and to Chroma."""
        ids = [f"passage {start + row}" for row in range(len(texts))]
        with (self.folder / "passages.jsonl").open("a", encoding="utf-8") as file:
            for id_, text in zip(ids, texts, strict=True):
                file.write(json.dumps({"id": id_, "text": text}) + "\n")
        collection = self.collection()
        for first in range(0, len(ids), step):
            part = slice(first, first + step)
            collection.add(
                ids=ids[part],
                embeddings=vectors[part],
                documents=texts[part],
                metadatas=[{"source": "synthetic"}] * len(ids[part]),
            )

    def _ask(self, rng: np.random.Generator, words: Any, chosen: Any, vectors: Floats) -> None:
        """Write questions: eight words of a passage, and a vector near the passage's."""
        rows = rng.choice(len(chosen), min(QUESTIONS, len(chosen)), replace=False)
        asked = [rng.choice(chosen[row], 8, replace=False) for row in rows]
        questions = [f"what is the {' '.join(words[some])}" for some in asked]
        noise = _unit(rng.standard_normal((len(rows), DIMENSION), dtype=np.float32))
        (self.folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        np.save(self.folder / "questions.npy", _unit(vectors[rows] + noise))


def _words() -> list[str]:
    """Return stop words and invented words, all different."""
    parts = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    invented = [a + b + c for a in parts for b in parts for c in parts]
    order = np.random.default_rng(1).permutation(len(invented))[: _VOCABULARY - len(_COMMON)]
    return _COMMON + [invented[place] for place in order]


def _unit(vectors: Floats) -> Floats:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
