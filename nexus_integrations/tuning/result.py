"""What `tune` made: a retriever, how each stage fared, and how to keep or undo it."""

from dataclasses import dataclass, field
from pathlib import Path

from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import Evaluation
from nexus_integrations.lexical import LexicalIndex
from nexus_integrations.nudge import StateFolder
from nexus_integrations.nudge.state_files import StateFiles
from nexus_integrations.protocols import Encoder, VectorIndex
from nexus_integrations.records import Record
from nexus_integrations.retrievers import DenseRetriever, HybridRetriever
from nexus_integrations.retrievers.hybrid import Coverage

RECORD = "tune.json"
ENCODER = "encoder"
WORDS = "words"
NUDGE = "nudge"


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    """How one stage fared on questions that did not choose it.

    `before` and `after` are means of the metric over them, `gain` the mean paired difference with
    its `interval`; `setting` is what was chosen. A stage with `kept` False is left out.
    """

    name: str
    setting: str
    before: float
    after: float
    gain: float
    interval: tuple[float, float]
    kept: bool

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name:<10} {self.before:.4f} → {self.after:.4f}  {self.gain:+.4f} "
            f"({low:+.4f} to {high:+.4f})  {'kept' if self.kept else 'left out'}  {self.setting}"
        )


@dataclass(frozen=True, kw_only=True)
class TuneRecord(Record):
    """The numbers of a tuning: no text.

    `questions` are those fitted on, `judged` those that judged the stages, `judged_by` how they
    were kept apart; `learned` the ids of the questions that passages learned. `encoder` is the
    fingerprint of the tuned encoder, `corpus` what tells the lexical index from others ("" without
    one), `coverage` how many passages both sides hold.
    """

    metric: str
    stages: list[Stage]
    weight: float
    gamma: float
    questions: int
    judged: int
    judged_by: str
    encoder: str
    corpus: str
    coverage: Coverage | None
    learned: list[str] = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        """Return a table: a line for each stage, and what was chosen."""
        head = f"{self.metric} of {self.judged} questions ({self.judged_by}), before and after"
        weight = f"weight of the words {self.weight:g}, γ {self.gamma:g}"
        return "\n".join([head, *map(str, self.stages), f"{weight}, {self.seconds:.0f} s"])


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A tuned retriever.

    `evaluations` holds "before" and "after" on the test questions, where they were given.
    """

    retriever: DenseRetriever | HybridRetriever
    record: TuneRecord
    lexical: LexicalIndex | None
    nudge: StateFolder = field(repr=False)
    evaluations: dict[str, Evaluation] = field(default_factory=dict, repr=False)

    @property
    def index(self) -> VectorIndex:
        """The index that was tuned."""
        return self.retriever.index

    @property
    def encoder(self) -> Encoder:
        """The tuned encoder, for questions; documents' vectors stay those of the one given."""
        return self.retriever.encoder

    @property
    def stages(self) -> list[Stage]:
        """How each stage fared, in the order in which they were tried."""
        return self.record.stages

    @property
    def weight(self) -> float:
        """The weight of the words: 0 without them, infinite without vectors."""
        return self.record.weight

    def __str__(self) -> str:
        lines = [str(self.record)]
        for when, evaluation in self.evaluations.items():
            low, high = evaluation.intervals[self.record.metric]
            value = evaluation.metrics[self.record.metric]
            lines.append(f"test, {when}: {value:.4f} ({low:.4f} to {high:.4f})")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write `tune.json`, the encoder, the words and what undoes the nudge into `folder`.

        What lies there already, because `tune` kept its state there, stays. The folder holds the
        passages' words and is private to its owner (0700). Raises `TypeError` for an encoder that
        cannot be saved, one that is no `DendriticEncoder`.
        """
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not isinstance(self.encoder, DendriticEncoder):
            raise TypeError(f"an encoder of type {type(self.encoder).__name__} cannot be saved")
        self.encoder.save(folder / ENCODER)
        if self.lexical is not None and not _same(self.lexical.folder, folder / WORDS):
            self.lexical.save(folder / WORDS)
        if self.nudge.state is not None and not _same(self.nudge.folder, folder / NUDGE):
            StateFiles(folder / NUDGE).write(self.nudge.state)
        self.record.save(folder / RECORD)

    @classmethod
    def load(cls, folder: str | Path, index: VectorIndex) -> "TuneResult":
        """Open what `save` wrote, for the index that was tuned.

        Raises `FileNotFoundError` where nothing was saved, and `ValueError` when it is damaged, its
        parts are of two tunings, or the index holds another corpus.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise FileNotFoundError(f"{folder} holds no {RECORD}: nothing was saved there")
        record = TuneRecord.load(folder / RECORD)
        encoder = DendriticEncoder.load(folder / ENCODER)
        if encoder.fingerprint != record.encoder:
            raise ValueError(f"the encoder in {folder} is another than the one that was tuned")
        lexical = LexicalIndex(folder / WORDS) if record.corpus else None
        if lexical is not None and lexical.corpus != record.corpus:
            raise ValueError(f"the words in {folder / WORDS} are another's than those tuned with")
        return cls(
            retriever=retriever_of(index, encoder, lexical, record.weight),
            record=record,
            lexical=lexical,
            nudge=StateFolder(folder / NUDGE),
        )

    def undo(self) -> dict[str, int]:
        """Put base vectors back and remove the questions that passages learned.

        The encoder given to `tune` fits the index again. Returns how many vectors were put back
        ("vectors") and questions removed ("questions"). A second time there is nothing to do.
        """
        forgotten = 0 if self.lexical is None else self.lexical.forget(self.record.learned)
        return {"vectors": self.nudge.undo(self.index), "questions": forgotten}


def retriever_of(
    index: VectorIndex, encoder: Encoder, lexical: LexicalIndex | None, weight: float
) -> DenseRetriever | HybridRetriever:
    """Return the retriever of these parts; vectors alone need no words."""
    if lexical is None:
        return DenseRetriever(index, encoder)
    return HybridRetriever(index, encoder, lexical, weight=weight)


def _same(one: Path | None, other: Path) -> bool:
    return one is not None and one.resolve() == other.resolve()
