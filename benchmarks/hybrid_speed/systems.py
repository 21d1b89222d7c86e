"""What every system does, and the store alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.hybrid_speed.corpus import Corpus

K = 10
DEPTH = 10  # passages that the peers take from each side, which is what they return


class System(Protocol):
    """A way to search; its words lie in `folder`, where it can keep them."""

    imports: tuple[str, ...]
    """The modules that it needs."""

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

    imports: tuple[str, ...] = ("chromadb",)

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
