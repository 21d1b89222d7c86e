"""What the NudgePostprocessor of every framework does; the frameworks say what they hand over."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge import (
    NudgeConfig,
    NudgeResult,
    choose_gamma_again,
    nudge_index,
)
from nexus_integrations.nudge.life import Forgotten, StateFolder
from nexus_integrations.nudge.state import NudgeState
from nexus_integrations.nudge.state_files import StateFiles
from nexus_integrations.nudge.stored import belongs
from nexus_integrations.protocols import Encoder, Floats, Metric, VectorIndex

Source = TypeVar("Source")
Model = TypeVar("Model")

# Where, in a state folder, the nudge lies that no store holds.
_KEPT = "query-time"
_FEW = 50  # candidates: below this the nudge keeps too little of its gain to go unsaid
_SAME = 0.02  # a store's score is the cosine up to this, which int8 vectors keep
_EMBEDDED = 10_000  # vectors of candidates kept in memory


class _Moves(NamedTuple):
    """What a nudge moves: row by document id, unit vectors (n, dimension) before and after."""

    rows: Mapping[str, int]
    before: Floats
    after: Floats


class Postprocessor(BaseModel, Generic[Source]):
    """The life of a nudge in a store, or, for a store that cannot be written, at query time.

    A state belongs to one store. It lies in `state_dir`, or, when that is None, in this object.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    train: InstanceOf[RetrievalDataset] = Field(exclude=True, repr=False)
    dev: InstanceOf[RetrievalDataset] | None = Field(default=None, exclude=True, repr=False)
    config: InstanceOf[NudgeConfig] | None = None
    state_dir: Path | None = None
    top_n: int | None = Field(default=None, ge=1)
    _in_store: StateFolder = PrivateAttr(default_factory=lambda: StateFolder(None))
    _kept: StateFolder = PrivateAttr(default_factory=lambda: StateFolder(None))
    _bound: tuple[object, Encoder] | None = PrivateAttr(default=None)
    _read: tuple[object, NudgeState, _Moves] | None = PrivateAttr(default=None)
    _embedded: dict[str, Floats] = PrivateAttr(default_factory=dict)

    def __init__(
        self,
        train: RetrievalDataset,
        dev: RetrievalDataset | None,
        config: NudgeConfig | None,
        state_dir: str | Path | None,
        top_n: int | None,
        **model: object,
    ) -> None:
        folder = None if state_dir is None else Path(state_dir)
        super().__init__(
            train=train, dev=dev, config=config, state_dir=folder, top_n=top_n, **model
        )

    @abstractmethod
    def open_index(self, source: Source) -> VectorIndex:
        """Return the stored vectors of what the framework hands over.

        Raises `NotImplementedError`, which names the store, for one that is not supported.
        """

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder that filled the store and queries it."""

    def apply(self, source: Source | None = None) -> NudgeResult:
        """Nudge the store in place and report; its searches see it at once.

        Without a store the moved vectors are kept in the state alone, for use at query time. The
        training set's corpus, which is embedded for it, should then be that of the whole store.

        Raises `NotImplementedError` for a store that is not supported, and what
        `nexus_integrations.nudge_index` raises, before anything is written.
        """
        return nudge_index(
            self._index(source, self.train.corpus),
            self.encoder,
            self.train,
            self.dev,
            self.config,
            state_dir=self._state(source),
        )

    def undo(self, source: Source | None = None, *, force: bool = False) -> int:
        """Put the base vectors back and return how many documents were restored, 0 if none.

        Raises `ValueError` for another store than the one that was nudged; `force` insists.
        """
        return self._state(source).undo(self._index(source, force=force), force=force)

    def observe(
        self,
        source: Source | None,
        query: str,
        document_id: str,
        *,
        query_id: str | None = None,
        content: str | None = None,
    ) -> str:
        """Learn from one answered question: move the document that answered it, and nothing else.

        γ stays as it is. `content` is the document's text, where it is not in the training corpus;
        its hash lets `refresh` tell a changed text. Returns the question's id, by which it can be
        forgotten; a random one when `query_id` is None. Raises `ValueError` when nothing is nudged
        yet or the id is taken, `KeyError` for an unknown document.
        """
        id_ = f"observed-{uuid4().hex}" if query_id is None else query_id
        text = self.train.corpus.get(document_id) if content is None else content
        vector = self.encoder.encode_queries([query])[0]
        self._state(source).observe(
            self._index(source, {} if text is None else {document_id: text}),
            vector,
            document_id,
            query_id=id_,
            content=text,
            fingerprint=self.encoder.fingerprint,
        )
        return id_

    def forget(
        self,
        source: Source | None,
        which: str | Collection[str] | Callable[[str], bool],
        *,
        purge: bool = False,
    ) -> Forgotten:
        """Remove what questions did from the store and from the state's files.

        `which` is a question's id, several, or a predicate on ids. With `purge` the engine is asked
        to remove old versions of what was overwritten.
        """
        if isinstance(which, str):
            which = {which}
        accepts = which if callable(which) else frozenset(which).__contains__
        return self._state(source).forget(self._index(source), accepts, purge=purge)

    def refresh(
        self,
        source: Source | None = None,
        corpus: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> dict[str, int]:
        """Bring store and state back in line after documents were deleted, changed or re-ingested.

        `corpus` holds the present texts by id, as far as known; without a store, all of them.
        Returns the counts "deleted", "changed" and "moved". Raises `ValueError` when most documents
        would drop out of the state; `force` insists.
        """
        if source is None:
            index: VectorIndex = self._without_store({}, present=corpus)
        else:
            index = self.open_index(source)
        return self._state(source).refresh(index, corpus, force=force)

    def choose_gamma_again(self, source: Source | None = None) -> NudgeResult:
        """Choose γ anew for the questions that the state holds, and move the documents to it."""
        return choose_gamma_again(
            self._index(source, self.train.corpus),
            self.encoder,
            self.dev,
            self.config,
            state_dir=self._state(source),
        )

    def _rescored(
        self,
        query: str,
        ids: Sequence[str],
        texts: Sequence[str],
        *,
        vector: Sequence[float] | None = None,
        scores: Sequence[float | None] | None = None,
    ) -> list[tuple[int, float | None]]:
        """Return the candidates' rows, best first, with their cosine to the query after the nudge.

        They stay in their order, with no cosine, where no nudge is kept for query time or none of
        them is moved by it. `vector` is the query's, where it is known already. A candidate that
        does not move keeps its score of `scores` if those are cosines, as those of candidates that
        move tell; otherwise it is embedded.
        """
        moves = self._moves()
        unchanged: list[tuple[int, float | None]] = [(row, None) for row in range(len(ids))]
        touched = [row for row, id_ in enumerate(ids) if moves and id_ in moves.rows]
        if moves is None or not ids:
            return unchanged[: self.top_n]
        if len(ids) < min(_FEW, len(self.train.corpus)):
            warnings.warn(
                f"NUDGE at query time got {len(ids)} candidates: what it would bring up from below "
                "is not among them. Retrieve 100, and give top_n for the number that is returned",
                UserWarning,
                stacklevel=3,
            )
        if not touched:
            return unchanged[: self.top_n]
        asked = self._query_vector(query, vector)
        moved = [moves.rows[ids[row]] for row in touched]
        cosines = np.zeros(len(ids), dtype=np.float32)
        known = [] if scores is None else [scores[row] for row in touched]
        expected = moves.before[moved] @ asked  # (n_touched,)
        if (
            scores
            and all(score is not None for score in scores)
            and np.abs(np.array(known, dtype=np.float32) - expected).max() <= _SAME
        ):
            cosines[:] = scores
        else:
            still = [row for row in range(len(ids)) if row not in set(touched)]
            cosines[still] = self._document_vectors([texts[row] for row in still]) @ asked
        cosines[touched] = moves.after[moved] @ asked
        order = np.argsort(-cosines, kind="stable")[: self.top_n]
        return [(row, float(cosines[row])) for row in order.tolist()]

    def _query_vector(self, query: str, vector: Sequence[float] | None) -> Floats:
        if vector is None or len(vector) != self.encoder.dimension:
            encoded: Floats = self.encoder.encode_queries([query])[0]
            return encoded
        row = np.asarray(vector, dtype=np.float32)
        return np.asarray(row / max(float(np.linalg.norm(row)), 1e-12), dtype=np.float32)

    def _document_vectors(self, texts: Sequence[str]) -> Floats:
        """Embed candidates, float32 (n, dimension); those of late are kept in memory."""
        if len(self._embedded) > _EMBEDDED:
            self._embedded.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._embedded]
        if new:
            self._embedded.update(zip(new, self.encoder.encode_documents(new), strict=True))
        rows = [self._embedded[text] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.encoder.dimension)

    def _moves(self) -> _Moves | None:
        """Return what is moved at query time, read anew when its files have changed."""
        if self.state_dir is None:
            seen: object = self._kept.state and id(self._kept.state)
        else:
            seen = StateFiles(self.state_dir / _KEPT).signature()
        if seen is None:
            return None
        if self._read is None or self._read[0] != seen:
            state = self._state(None).state
            if state is None:
                return None
            if state.fingerprint != self.encoder.fingerprint:
                raise ValueError(
                    "the nudge that is kept for query time is of another encoder (its fingerprint "
                    "differs): give its embedding model, or undo() and apply() again"
                )
            self._read = seen, state, _Moves(state.rows, state.base, state.targets())
        return self._read[2]

    def _encoder_of(self, model: Model, make: Callable[[Model], Encoder]) -> Encoder:
        """Return `make(model)`, made once per model: a foreign one embeds a word to be known."""
        if self._bound is None or self._bound[0] is not model:
            self._bound = model, make(model)
        return self._bound[1]

    def _index(
        self,
        source: Source | None,
        texts: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> VectorIndex:
        """Open the source; another store than the one of a state in memory raises `ValueError`."""
        if source is None:
            return self._without_store(texts or {})
        index = self.open_index(source)
        state = self._in_store.state
        if force or state is None or not self._in_store.settled:
            return index
        if not belongs(state, index):
            raise ValueError(
                "this postprocessor keeps, in memory, what undoes the nudge of a store, and none "
                "of the vectors that it moved is in the store given: for another store use another "
                "postprocessor, or a state_dir each; if it was ingested anew, call refresh"
            )
        return index

    def _without_store(
        self, texts: Mapping[str, str], present: Collection[str] | None = None
    ) -> MemoryIndex:
        """Return what stands for the store: moved vectors of the state, and `texts` embedded.

        Of the state's documents those are left out that are not `present`.
        """
        state = self._state(None).state
        vectors = (
            {} if state is None else dict(zip(state.document_ids, state.targets(), strict=True))
        )
        if present is not None:
            vectors = {id_: vector for id_, vector in vectors.items() if id_ in present}
        new = {id_: text for id_, text in texts.items() if id_ not in vectors}
        if new:
            embedded = self.encoder.encode_documents(list(new.values()))
            vectors |= dict(zip(new, embedded, strict=True))
        rows = np.array(list(vectors.values()), dtype=np.float32)
        metric = Metric.DOT if self.config and self.config.variant == "m" else Metric.COSINE
        return MemoryIndex(
            list(vectors), rows.reshape(len(vectors), self.encoder.dimension), metric
        )

    def _state(self, source: Source | None) -> StateFolder:
        """Return the state of the nudge in the store, or of the one that no store holds."""
        if self.state_dir is None:
            return self._kept if source is None else self._in_store
        # Opened anew each time: another process may have nudged or undone since.
        return StateFolder(self.state_dir if source is not None else self.state_dir / _KEPT)
