"""The main job on the corpus that ships with the package: the handbook of a fictional clinic."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from nexus_integrations import (
    Comparison,
    DendriticEncoder,
    DenseRetriever,
    Evaluation,
    FinetuneConfig,
    FinetuneResult,
    NudgeResult,
    Report,
    RetrievalDataset,
    compare,
    evaluate,
    finetune,
    nudge_index,
)
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.state_files import StateFiles
from nexus_integrations.nudge.stored import restore
from nexus_integrations.protocols import Floats
from nexus_integrations.report.plots import plot_gamma, plot_growth

SHARES = (0.6, 0.15, 0.25)
"""The shares of train, dev and test questions."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured; `print` shows it in a few lines.

    `stages` are evaluations of the test questions: "before", "fine-tuned" and "nudged". `undone`
    tells that the undo gave the index back bit for bit; `seconds` is the time of each step.
    """

    stages: dict[str, Evaluation]
    finetuned: FinetuneResult
    nudged: NudgeResult
    undone: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> Comparison:
        """The last stage against the first, question by question."""
        first, *_, last = self.stages.values()
        return compare(first, last)

    @property
    def dendrites(self) -> int:
        """How many dendrites the head has grown."""
        head = self.finetuned.encoder.query_head
        return 0 if head is None else head.dendrites

    def __str__(self) -> str:
        means = " → ".join(
            f"{stage.metrics['ndcg@10']:.3f} {name}" for name, stage in self.stages.items()
        )
        times = ", ".join(f"{step} {seconds:.0f}" for step, seconds in self.seconds.items())
        moved = self.nudged.moved if self.nudged.written else 0
        return "\n".join(
            [
                f"Test nDCG@10 (1: every right passage on top): {means}.",
                str(self.gain),
                f"{self.dendrites} dendrites grew. The nudge moved {moved} passages (γ = "
                f"{self.nudged.gamma:g}).",
                "Undoing the nudge gives the vectors back bit for bit: "
                f"{'yes' if self.undone else 'NO'}.",
                f"{sum(self.seconds.values()):.0f} s in all ({times}).",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the measured numbers."""
        return {
            "stages": {name: {"metrics": one.metrics} for name, one in self.stages.items()},
            "gain": self.gain.to_json(),
            "dendrites": self.dendrites,
            "gamma": self.nudged.gamma,
            "moved": self.nudged.moved,
            "written": self.nudged.written,
            "undone": self.undone,
            "seconds": self.seconds,
        }


def corpus() -> RetrievalDataset:
    """Return the handbook: 126 passages and 636 questions, all original and fictional."""
    with as_file(files(__package__) / "clinic.json") as path:
        return RetrievalDataset.from_json(path)


def run(
    folder: str | Path,
    config: FinetuneConfig | None = None,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Embed, evaluate, fine-tune, nudge, evaluate, and undo on a copy, within `folder`.

    Writes the tuned encoder (`encoder/`), the nudge's state (`state/`), the nudged vectors
    (`vectors.parquet`), two plots (`growth.png`, `gamma.png`) and the report of it all
    (`report.html`, with the fictional texts). `tell` is told of each step.
    """
    folder = _cleared(Path(folder))
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, words: str) -> Iterator[None]:
        tell(words)
        begun = perf_counter()
        yield
        seconds[name] = perf_counter() - begun

    def asked(encoder: DendriticEncoder) -> Evaluation:
        return evaluate(DenseRetriever(index, encoder), test, trained_on=train)

    with step("load", "Loading all-MiniLM-L6-v2 and the handbook of a fictional clinic"):
        encoder = DendriticEncoder.load()
        train, dev, test = corpus().split(*SHARES, seed=0)
    with step("embed", f"Embedding {len(train.corpus)} passages"):
        vectors = encoder.encode_documents(list(train.corpus.values()))
        index = MemoryIndex(list(train.corpus), vectors)
    with step("evaluate", f"Asking the {len(test)} test questions, before"):
        stages = {"before": asked(encoder)}
    with step("fine-tune", f"Fine-tuning on {len(train)} questions, {len(dev)} to choose by"):
        finetuned = finetune(encoder, train, dev, config, index=index)
        tuned = finetuned.encoder
        if tuned.document_head is not None:
            index = MemoryIndex(list(train.corpus), tuned.document_head.transform(vectors))
        stages["fine-tuned"] = asked(tuned)
    with step("nudge", "Nudging the passages that answer training questions"):
        base = index.vectors(list(train.corpus))
        nudged = nudge_index(index, tuned, train, dev, state_dir=folder / "state")
        stages["nudged"] = asked(tuned)
    with step("write", f"Writing the encoder, the vectors, two plots and the report to {folder}"):
        _write(folder, stages, finetuned, nudged, index, test)
        undone = _undone_on_a_copy(folder, nudged, list(train.corpus), base)
    return DemoResult(
        stages=stages, finetuned=finetuned, nudged=nudged, undone=undone, seconds=seconds
    )


def _cleared(folder: Path) -> Path:
    """Make the folder; remove the nudge of an earlier run, whose index this run makes anew."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = StateFiles(folder / "state")
    if earlier.signature() is not None:
        earlier.remove()
    return folder


def _undone_on_a_copy(folder: Path, nudged: NudgeResult, ids: list[str], base: Floats) -> bool:
    """Tell whether undoing the nudge of the saved vectors gives `base` back bit for bit."""
    copy = MemoryIndex.load(folder / "vectors.parquet")
    if nudged.folder is not None and nudged.folder.state is not None:
        restore(nudged.folder.state, copy)
    return bool(np.array_equal(copy.vectors(ids), base))


def _write(
    folder: Path,
    stages: dict[str, Evaluation],
    finetuned: FinetuneResult,
    nudged: NudgeResult,
    index: MemoryIndex,
    test: RetrievalDataset,
) -> None:
    finetuned.save(folder / "encoder")
    index.save(folder / "vectors.parquet")
    if finetuned.history:
        plot_growth(finetuned.history, finetuned.baseline_score, folder / "growth.png")
    if nudged.curve:
        plot_gamma(nudged.curve, nudged.gamma, nudged.metric, folder / "gamma.png")
    report = Report.of(
        stages,
        finetuned=finetuned,
        nudged=nudged,
        index=index,
        dataset=test,
        folders=[folder / "encoder", folder / "state"],
    )
    report.save(folder / "report.html", include_text=True)
