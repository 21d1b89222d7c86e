"""Vectors and words over a framework's own store, with the store's own metadata filters."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic

import numpy as np

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.extras import extra
from nexus_integrations.frameworks.passages import Item, Passages
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.protocols import Encoder, Floats, Hits, Metric, VectorIndex
from nexus_integrations.retrievers import DenseRetriever, HybridRetriever, Match
from nexus_integrations.tuning.config import TuneConfig
from nexus_integrations.tuning.result import WORDS, TuneResult, retriever_of

_BATCH = 1_000  # passages whose texts a store is asked for at a time


class Filtered:
    """The passages of an index that a metadata filter keeps, as an index of their own.

    The store applies the filter, for the nearest passages and for those that words name alike.
    """

    def __init__(self, index: VectorIndex, passages: Passages[Any], filters: Any) -> None:
        self._index, self._passages, self._filters = index, passages, filters
        self._known: dict[str, bool] = {}

    @property
    def metric(self) -> Metric:
        """The similarity by which the store ranks."""
        return self._index.metric

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._index.dimension

    @property
    def approximate(self) -> bool:
        """Whether the store may miss near passages: a filter makes many of them do so."""
        return True

    def __len__(self) -> int:
        """The number of vectors, those included that the filter excludes."""
        return len(self._index)

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that the filter excludes, or the store does not hold."""
        new = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._known]
        if new:
            kept = self._passages.kept(new, self._filters)
            self._known.update((id_, id_ in kept) for id_ in new)
        return {id_ for id_ in ids if not self._known[id_]}

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of the passages that the filter keeps, `batch_size` at a time or fewer."""
        for batch in self._index.ids(batch_size):
            missing = self.missing(batch)
            yield [id_ for id_ in batch if id_ not in missing]

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return stored vectors; an id that the filter excludes raises `KeyError`."""
        if missing := self.missing(ids):
            raise KeyError(f"the filter excludes {len(missing)} of {len(ids)} passages")
        return self._index.vectors(ids)

    def search(self, queries: Floats, k: int) -> Hits:
        """Return the k nearest passages of each query, (n_queries, dimension), that are kept."""
        found = []
        for query in queries:
            ids = self._passages.near(query.tolist(), k, self._filters)
            self._known.update(dict.fromkeys(ids, True))
            if ids:
                near = MemoryIndex(ids, self._index.vectors(ids), self.metric)
                found.append(near.search(query, k))
            else:
                found.append(Hits([[]], np.zeros((1, 0), dtype=np.float32)))
        return Hits.joined(found)

    def replace(self, ids: Sequence[str], vectors: Floats) -> None:
        """Refuse: what is filtered is for reading."""
        raise NotImplementedError("a filtered index is for reading: replace in the store's own")


class Words:
    """A lexical index, opened on first use; a pickle holds its folder."""

    def __init__(self, lexical: LexicalIndex | str | Path) -> None:
        self._lexical = lexical if isinstance(lexical, LexicalIndex) else None
        self._folder = lexical.folder if isinstance(lexical, LexicalIndex) else Path(lexical)

    def get(self) -> LexicalIndex:
        """Return the index; raises what `LexicalIndex` raises, and `FileNotFoundError`."""
        if self._lexical is None:
            if self._folder is None or not self._folder.is_dir():
                raise FileNotFoundError(f"there is no lexical index in {self._folder}")
            self._lexical = LexicalIndex(self._folder)
        return self._lexical

    def __deepcopy__(self, memo: dict[int, Any]) -> "Words":
        return self

    def __reduce__(self) -> tuple[type["Words"], tuple[str]]:
        if self._folder is None:
            raise TypeError(
                "a lexical index in memory cannot be pickled: make it in a folder, "
                "LexicalIndex(folder)"
            )
        return Words, (str(self._folder),)


class StoreSearch(Generic[Item]):
    """Find passages of one store by vectors and words, as the framework's own objects."""

    def __init__(
        self,
        index: VectorIndex,
        encoder: Encoder,
        words: Words | None,
        passages: Passages[Item],
        settings: tuple[object, object, float],
    ) -> None:
        """Open all of it; `settings` are the framework's store and model, and the words' weight."""
        self._passages = passages
        self._settings = settings
        lexical = None if words is None else words.get()
        self._retriever = retriever_of(index, encoder, lexical, settings[-1])

    def is_of(self, settings: tuple[object, object, float]) -> bool:
        """Tell whether it was opened for these settings, none of which was changed since."""
        return all(mine is theirs for mine, theirs in zip(self._settings, settings, strict=True))

    def find(self, text: str, k: int, filters: Any = None) -> list[tuple[Item, Match]]:
        """Return the k best passages for a question, best first, each with its scores.

        Raises `ValueError` for k < 1, and `NotImplementedError` for filters that the store does not
        apply.
        """
        matches = self._matches(text, k, filters)
        items = self._passages.items([match.id for match in matches])
        # A passage that was deleted meanwhile is left out.
        return [(items[match.id], match) for match in matches if match.id in items]

    def _matches(self, text: str, k: int, filters: Any) -> list[Match]:
        retriever = self._retriever
        if isinstance(retriever, HybridRetriever):
            if filters is not None:
                retriever = retriever.within(Filtered(retriever.index, self._passages, filters))
            return retriever.matches([text], k)[0]
        if filters is not None:
            view = Filtered(retriever.index, self._passages, filters)
            retriever = DenseRetriever(view, retriever.encoder)
        hits = retriever.search([text], k)
        scores = hits.similarities[0].tolist()
        return [
            Match(id_, score, score, math.nan, math.nan)
            for id_, score in zip(hits.ids[0], scores, strict=False)
        ]


def tune_store(
    index: VectorIndex,
    encoder: Encoder,
    passages: Passages[Any],
    train: RetrievalDataset,
    dev: RetrievalDataset | None,
    config: TuneConfig | None,
    *,
    lexical: LexicalIndex | None,
    folder: str | Path | None,
    test: RetrievalDataset | None,
) -> TuneResult:
    """Tune over a store, whose own texts are the words where none are given; save to `folder`.

    With an encoder that cannot be saved the folder holds what undoes the tuning, and no more.
    """
    with extra("train"):
        from nexus_integrations.tuning.stages import tune
    config = config or TuneConfig()
    if folder is not None:
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config.words and lexical is None:
        words = None if folder is None else folder / WORDS
        lexical = words_of(index, passages, words, config.language)
    result = tune(index, encoder, train, dev, config, lexical=lexical, state_dir=folder, test=test)
    if folder is not None and isinstance(result.encoder, DendriticEncoder):
        result.save(folder)
    return result


def words_of(
    index: VectorIndex,
    passages: Passages[Any],
    folder: str | Path | None,
    language: str | None,
) -> LexicalIndex:
    """Make a lexical index of the texts that a store gives back."""

    def texts() -> Iterator[tuple[str, str]]:
        for batch in index.ids(_BATCH):
            for id_, item in passages.items(batch).items():
                yield id_, passages.text(item)

    lexical = LexicalIndex(folder, language=language)
    lexical.fill(texts(), total=len(index))
    return lexical
