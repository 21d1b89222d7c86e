"""The process that is killed: it checks what the last one left, and changes the nudge at random."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.kill_nudge.stores import (
    ASKED,
    DIMENSION,
    DOCUMENTS,
    IDS,
    TOLERANCE,
    VECTORS,
    open_index,
)
from nexus_integrations.data import RetrievalDataset
from nexus_integrations.nudge import NudgeConfig, nudge_index
from nexus_integrations.nudge.life import StateFolder
from nexus_integrations.nudge.solver import Turn
from nexus_integrations.protocols import Floats, VectorIndex

QUESTIONS = 10  # of one nudge
_ROUNDING = 1e-6  # of a target computed twice


class GivenVectors:
    """An encoder whose vectors are given: the text is the row number."""

    dimension = DIMENSION
    fingerprint = "given"

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return the rows that the texts name."""
        return ASKED[[int(text) for text in texts]]

    encode_documents = encode_queries


@dataclass(frozen=True)
class Learned:
    """What a nudge has learned: for each question id its row in `ASKED` and its answers' rows."""

    gamma: float
    questions: dict[str, tuple[int, list[int]]]

    def vectors(self) -> Floats:
        """Return the vectors that the store should hold, float32 (300, 16)."""
        sums = np.zeros_like(VECTORS)
        for row, answers in self.questions.values():
            sums[answers] += ASKED[row]
        moved = Turn.of(VECTORS, sums).at(self.gamma)
        return np.where(self.idle()[:, None], VECTORS, moved)

    def idle(self) -> NDArray[np.bool_]:
        """Return which documents answer no question, so must be at their base: (300,)."""
        answers = [row for _, found in self.questions.values() for row in found]
        return ~np.isin(np.arange(DOCUMENTS), answers)


NOTHING = Learned(0.0, {})


@dataclass(frozen=True)
class Step:
    """An operation, and what is learned before and after it."""

    operation: str
    before: Learned
    after: Learned

    def outcomes(self) -> list[Learned]:
        """Return what the state may hold after the operation was cut off and finished."""
        # A nudge over another one undoes that one first.
        between = [NOTHING] if self.operation == "apply" else []
        return [self.before, self.after, *between]


def live(
    store: str, place: str, state_dir: str, seed: int, last: Step | None, parent: Connection
) -> None:
    """Check what the last process left, then change the nudge until killed.

    Sends (failure or None, whether there was something to finish, the largest deviation of a base
    vector), then every `Step` before it is taken and its duration afterwards.
    """
    choose = random.Random(seed)
    index = open_index(store, place)
    learned, *found = _settle(index, state_dir, last, TOLERANCE[store], choose)
    parent.send(found)
    folder = StateFolder(state_dir)
    while True:
        if choose.random() < 0.5:  # as the frameworks do, which open it for every operation
            folder = StateFolder(state_dir)
        step = _next_step(learned, choose)
        parent.send(step)
        begun = perf_counter()
        _take(step, index, folder)
        parent.send(perf_counter() - begun)
        learned = step.after


def _settle(
    index: VectorIndex,
    state_dir: str,
    last: Step | None,
    tolerance: float,
    choose: random.Random,
) -> tuple[Learned, str | None, bool, float]:
    """Finish or undo what was cut off, and compare with what must be stored before and after."""
    outcomes = [NOTHING] if last is None else last.outcomes()
    possible = np.stack([VECTORS, *(learned.vectors() for learned in outcomes)])
    away = np.abs(index.vectors(IDS) - possible).max(axis=2).min(axis=0)  # (n_documents,)
    folder = StateFolder(state_dir)
    cut_off = folder.state is not None and folder.state.phase != "applied"
    failure = None
    if away.max() > max(tolerance, _ROUNDING):
        failure = f"{(away > _ROUNDING).sum()} vectors are neither base nor target"
    learned = NOTHING
    if choose.random() < 0.5:
        folder.undo(index)
    else:
        cut_off = folder.finish(index) or cut_off
        questions = [] if folder.state is None else folder.state.query_ids
        matching = [found for found in outcomes if list(found.questions) == questions]
        if matching:
            learned = matching[0]
        else:
            failure = failure or f"the state knows {questions}"
    stored, expected = index.vectors(IDS), learned.vectors()
    at_base = float(np.abs(stored - VECTORS)[learned.idle()].max())
    moved = float(np.abs(stored - expected).max())
    if at_base > tolerance or moved > max(tolerance, _ROUNDING):
        failure = failure or f"finished, vectors differ by {max(at_base, moved):.2g}"
    return learned, failure, cut_off, at_base


def _next_step(learned: Learned, choose: random.Random) -> Step:
    """Draw an operation; one on a nudge only where there is one."""
    operations = ["apply", "observe", "forget", "undo"]
    operation = choose.choices(operations, [1, 2, 2, 1])[0] if learned.questions else "apply"
    after = NOTHING
    if operation == "apply":
        questions = dict(_question(choose) for _ in range(QUESTIONS))
        after = Learned(choose.choice([0.05, 0.1, 0.3]), questions)
    elif operation == "observe":
        id_, (row, answers) = _question(choose)
        if choose.random() < 0.5:  # a document that has moved already
            row = choose.choice([row for row, _ in learned.questions.values()])
            answers = [row]
        after = replace(learned, questions={**learned.questions, id_: (row, answers[:1])})
    elif operation == "forget":
        gone = choose.sample(list(learned.questions), choose.randint(1, len(learned.questions)))
        if choose.random() < 0.5:  # the last one, which may be in the journal
            gone = list(learned.questions)[-1:]
        kept = {id_: found for id_, found in learned.questions.items() if id_ not in gone}
        after = replace(learned, questions=kept)
    return Step(operation, learned, after)


def _question(choose: random.Random) -> tuple[str, tuple[int, list[int]]]:
    """Return a new id, the row of the question, and one to three documents that answer it."""
    row = choose.randrange(DOCUMENTS)
    answers = {row, *choose.sample(range(DOCUMENTS), choose.randint(0, 2))}
    return f"q{choose.getrandbits(64):x}", (row, sorted(answers, key=lambda other: other != row))


def _take(step: Step, index: VectorIndex, folder: StateFolder) -> None:
    before, after = step.before.questions, step.after.questions
    if step.operation == "apply":
        train = RetrievalDataset(
            queries={id_: str(row) for id_, (row, _) in after.items()},
            corpus={id_: id_ for id_ in IDS},
            relevant_docs={id_: [IDS[row] for row in found] for id_, (_, found) in after.items()},
        )
        config = NudgeConfig(gamma=step.after.gamma)
        nudge_index(index, GivenVectors(), train, config=config, state_dir=folder)
    elif step.operation == "observe":
        ((id_, (row, answers)),) = [pair for pair in after.items() if pair[0] not in before]
        folder.observe(index, ASKED[row], IDS[answers[0]], query_id=id_, fingerprint="given")
    elif step.operation == "forget":
        folder.forget(index, lambda id_: id_ not in after)
    else:
        folder.undo(index)
