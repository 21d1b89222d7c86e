"""What the NudgePostprocessor of every framework does; the frameworks say what they hand over."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Generic, TypeVar
from uuid import uuid4

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.nudge.apply import (
    NudgeConfig,
    NudgeResult,
    choose_gamma_again,
    nudge_index,
)
from nexus_integrations.nudge.life import StateFolder, belongs
from nexus_integrations.protocols import Encoder, VectorIndex

Source = TypeVar("Source")
Model = TypeVar("Model")


class Postprocessor(ABC, Generic[Source]):
    """Move the stored vectors of one store towards the questions that its documents answer.

    The ids of documents in the datasets are their ids in the store. What undoes a nudge is kept in
    `state_dir`, from where another process can undo it too, or as long as this object when that is
    None. A state belongs to one store. Applying again starts from the base vectors, not from moved
    ones.
    """

    def __init__(
        self,
        train: RetrievalDataset,
        dev: RetrievalDataset | None,
        config: NudgeConfig | None,
        state_dir: str | Path | None,
    ) -> None:
        self.train = train
        self.dev = dev
        self.config = config
        self.state_dir = state_dir
        self._memory = StateFolder(None)
        self._bound: tuple[object, Encoder] | None = None

    @abstractmethod
    def open_index(self, source: Source) -> VectorIndex:
        """Return the stored vectors of what the framework hands over.

        Raises `NotImplementedError`, which names the store, for one that is not supported.
        """

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder that filled the store and queries it."""

    def apply(self, source: Source) -> NudgeResult:
        """Nudge the store in place and report; its searches see it at once.

        Raises `NotImplementedError` for a store that is not supported, and what
        `nexus_integrations.nudge_index` raises, before anything is written.
        """
        index = self._open(source)
        return nudge_index(
            index, self.encoder, self.train, self.dev, self.config, state_dir=self._state()
        )

    def undo(self, source: Source) -> int:
        """Put the base vectors back and return how many documents were restored, 0 if none."""
        return self._state().undo(self._open(source))

    def observe(
        self,
        source: Source,
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
        vector = self.encoder.encode_queries([query])[0]
        self._state().observe(
            self._open(source),
            vector,
            document_id,
            query_id=id_,
            content=self.train.corpus.get(document_id) if content is None else content,
            fingerprint=self.encoder.fingerprint,
        )
        return id_

    def forget(self, source: Source, which: str | Collection[str] | Callable[[str], bool]) -> int:
        """Remove what questions did, exactly, from the store and from the state's files.

        `which` is a question's id, several, or a predicate on ids. Returns how many were forgotten.
        """
        if isinstance(which, str):
            which = {which}
        accepts = which if callable(which) else frozenset(which).__contains__
        return self._state().forget(self._open(source), accepts)

    def refresh(self, source: Source, corpus: Mapping[str, str] | None = None) -> dict[str, int]:
        """Bring store and state back in line after documents were deleted, changed or re-ingested.

        `corpus` holds the present texts by id, as far as known. Returns the counts "deleted",
        "changed" and "moved".
        """
        return self._state().refresh(self.open_index(source), corpus)

    def choose_gamma_again(self, source: Source) -> NudgeResult:
        """Choose γ anew for the questions that the state holds, and move the documents to it."""
        return choose_gamma_again(
            self._open(source), self.encoder, self.dev, self.config, state_dir=self._state()
        )

    def _encoder_of(self, model: Model, make: Callable[[Model], Encoder]) -> Encoder:
        """Return `make(model)`, made once per model: a foreign one embeds a word to be known."""
        if self._bound is None or self._bound[0] is not model:
            self._bound = model, make(model)
        return self._bound[1]

    def _open(self, source: Source) -> VectorIndex:
        """Open the source; another store than the one of a state in memory raises `ValueError`."""
        index = self.open_index(source)
        state = self._memory.state
        if state is not None and self._memory.settled and not belongs(state, index):
            raise ValueError(
                "this postprocessor keeps, in memory, what undoes the nudge of a store, and none "
                "of the vectors that it moved is in the store given: for another store use another "
                "postprocessor, or a state_dir each; if it was ingested anew, call refresh"
            )
        return index

    def _state(self) -> StateFolder:
        # Opened anew each time: another process may have nudged or undone since.
        return self._memory if self.state_dir is None else StateFolder(self.state_dir)
