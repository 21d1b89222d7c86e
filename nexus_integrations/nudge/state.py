"""What a nudge is: base vectors, questions, γ. Everything else follows from it.

It holds ids, hashes and vectors, never text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from nexus_integrations.nudge.solver import Shift, Turn, query_sums
from nexus_integrations.protocols import Floats

Variant = Literal["n", "m"]
# "applying" and "undoing" are on disk before the store is written: found on opening, they mean that
# the store may hold either vector of any document.
Phase = Literal["applying", "applied", "undoing"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One question answered in use.

    `query` is its unit vector, float32 (dimension,); `base` the document's vector as stored before,
    where no other question had moved it, else None.
    """

    query_id: str
    document_id: str
    content_sha256: str
    query: Floats = field(repr=False)
    base: Floats | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class NudgeState:
    """What is needed to compute, finish, undo or repeat a nudge.

    `base` are the touched documents' vectors as stored before, float32 (n_documents, dimension);
    `queries` the vectors of the training queries, float32 (n_queries, dimension); `answers[i]` the
    row numbers of the documents that query i moves. `content_sha256` tells whether a document's
    text has changed since.
    """

    phase: Phase
    variant: Variant
    gamma: float
    metric: str
    fingerprint: str
    document_ids: list[str] = field(repr=False)
    content_sha256: list[str] = field(repr=False)
    query_ids: list[str] = field(repr=False)
    answers: list[list[int]] = field(repr=False)
    base: Floats = field(repr=False)
    queries: Floats = field(repr=False)
    observed_ids: list[str] = field(default_factory=list, repr=False)
    """The questions that were observed in use: nudging again keeps them."""
    store: str = ""
    """The identity of the store, where it has one."""
    previous: Floats | None = field(default=None, repr=False)
    """What the store held before the write that is under way, float32 (n_documents, dimension)."""

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row number of each document id."""
        return {id_: row for row, id_ in enumerate(self.document_ids)}

    @property
    def sums(self) -> Floats:
        """G, float32 (n_documents, dimension): per document the sum of the queries it answers."""
        return query_sums(self.queries, self.answers, len(self.document_ids))

    def targets(self) -> Floats:
        """Return the vectors that the nudge writes, float32 (n_documents, dimension).

        NUDGE-N turns a document and keeps its length; one without questions keeps its base vector.
        """
        return self._moved(self.base, self.sums)

    def target_of(self, document_id: str) -> Floats:
        """Return the vector that the nudge writes for one document, float32 (dimension,)."""
        row = self.rows[document_id]
        own = [number for number, found in enumerate(self.answers) if row in found]
        sums = query_sums(self.queries[own], [[0]] * len(own), 1)
        moved: Floats = self._moved(self.base[[row]], sums)[0]
        return moved

    def with_observations(self, observations: Sequence[Observation]) -> "NudgeState":
        """Return the state with these questions more, in their order."""
        if not observations:
            return self
        moved = [(new, new.base) for new in observations if new.base is not None]
        state = replace(
            self,
            document_ids=[*self.document_ids, *(new.document_id for new, _ in moved)],
            content_sha256=[*self.content_sha256, *(new.content_sha256 for new, _ in moved)],
            base=np.concatenate([self.base, *(base[None] for _, base in moved)]),
        )
        return replace(
            state,
            query_ids=[*self.query_ids, *(new.query_id for new in observations)],
            queries=np.concatenate([self.queries, *(new.query[None] for new in observations)]),
            observed_ids=[*self.observed_ids, *(new.query_id for new in observations)],
            answers=[*self.answers, *([state.rows[new.document_id]] for new in observations)],
        )

    def with_queries(self, kept: Sequence[int]) -> "NudgeState":
        """Return the state of these queries alone; documents stay, also those left without any."""
        return replace(
            self,
            query_ids=[self.query_ids[number] for number in kept],
            queries=self.queries[list(kept)],
            answers=[self.answers[number] for number in kept],
            observed_ids=self._observed_among(kept),
        )

    def with_documents(self, kept: Sequence[int]) -> "NudgeState":
        """Return the state of these documents alone, and of the queries that still move one."""
        places = {row: place for place, row in enumerate(kept)}
        answers = [[places[row] for row in found if row in places] for found in self.answers]
        queries = [number for number, found in enumerate(answers) if found]
        return replace(
            self,
            document_ids=[self.document_ids[row] for row in kept],
            content_sha256=[self.content_sha256[row] for row in kept],
            base=self.base[list(kept)],
            previous=None if self.previous is None else self.previous[list(kept)],
            query_ids=[self.query_ids[number] for number in queries],
            queries=self.queries[queries],
            answers=[answers[number] for number in queries],
            observed_ids=self._observed_among(queries),
        )

    def settled(self) -> "NudgeState":
        """Return the state once the store holds it: documents without a question drop out."""
        busy = sorted({row for found in self.answers for row in found})
        return replace(self.with_documents(busy), phase="applied", previous=None)

    def _observed_among(self, kept: Sequence[int]) -> list[str]:
        observed = set(self.observed_ids)
        return [self.query_ids[number] for number in kept if self.query_ids[number] in observed]

    def _moved(self, base: Floats, sums: Floats) -> Floats:
        idle = ~sums.any(axis=1, keepdims=True)
        if self.variant == "m":
            moved = Shift.of(base, sums).at(self.gamma)
        else:
            length = np.linalg.norm(base, axis=1, keepdims=True)
            moved = Turn.of(base, sums).at(self.gamma) * length
        return np.where(idle, base, moved)


def content_hashes(texts: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each text, in hex."""
    return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
