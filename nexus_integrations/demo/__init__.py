"""The main job on the corpus that ships with the package: the handbook of a fictional clinic."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from time import perf_counter

import numpy as np

from nexus_integrations.data import RetrievalDataset
from nexus_integrations.encoder import DendriticEncoder
from nexus_integrations.evaluation import Comparison, Evaluation, compare, evaluate
from nexus_integrations.index.memory import MemoryIndex
from nexus_integrations.nudge.apply import NudgeResult, nudge_index
from nexus_integrations.nudge.life import restore
from nexus_integrations.nudge.state import StateFiles
from nexus_integrations.report import NudgeRecord, Report
from nexus_integrations.report.plots import plot_gamma, plot_growth
from nexus_integrations.retrievers import DenseRetriever
from nexus_integrations.training.recipe import FinetuneConfig, FinetuneResult, finetune

SHARES = (0.6, 0.15, 0.25)
"""The shares of train, dev and test questions."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured: test evaluations of the three stages, and how each was reached.

    `undone` tells that the undo gave back the index bit for bit; `seconds` is the time per stage.
    """

    stages: dict[str, Evaluation]
    gain: Comparison
    finetuned: FinetuneResult
    nudged: NudgeResult
    undone: bool
    seconds: dict[str, float]


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
    (`report.html`). `tell` is told of each step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = StateFiles(folder / "state")
    if earlier.signature() is not None:
        earlier.remove()  # the nudge of an earlier run, whose index this run makes anew
    seconds: dict[str, float] = {}

    def timed(stage: str, since: float) -> None:
        seconds[stage] = perf_counter() - since

    begun = perf_counter()
    tell("Loading all-MiniLM-L6-v2 and the clinic's handbook")
    encoder = DendriticEncoder.load()
    train, dev, test = corpus().split(*SHARES, seed=0)
    timed("load", begun)

    begun = perf_counter()
    tell(f"Embedding {len(train.corpus)} passages")
    vectors = encoder.encode_documents(list(train.corpus.values()))
    index = MemoryIndex(list(train.corpus), vectors)
    timed("embed", begun)

    begun = perf_counter()
    tell(f"Asking the {len(test)} test questions, before")
    stages = {"before": evaluate(DenseRetriever(index, encoder), test)}
    timed("evaluate", begun)

    begun = perf_counter()
    tell(f"Fine-tuning on {len(train)} questions, {len(dev)} to choose by")
    finetuned = finetune(encoder, train, dev, config, index=index)
    tuned = finetuned.encoder
    if tuned.document_head is not None:
        index = MemoryIndex(list(train.corpus), tuned.document_head.transform(vectors))
    stages["fine-tuned"] = evaluate(DenseRetriever(index, tuned), test)
    timed("fine-tune", begun)

    begun = perf_counter()
    tell("Nudging the passages that answer training questions")
    before = index.vectors(list(train.corpus))
    nudged = nudge_index(index, tuned, train, dev, state_dir=folder / "state")
    stages["and nudged"] = evaluate(DenseRetriever(index, tuned), test)
    timed("nudge", begun)

    begun = perf_counter()
    tell(f"Writing the encoder, the vectors, two plots and the report to {folder}")
    finetuned.save(folder / "encoder")
    NudgeRecord.of(nudged, tuned.fingerprint).save(folder / "state")
    index.save(folder / "vectors.parquet")
    if finetuned.history:
        plot_growth(finetuned.history, finetuned.baseline_score, folder / "growth.png")
    if nudged.curve:
        plot_gamma(nudged.curve, nudged.gamma, nudged.metric, folder / "gamma.png")
    Report.of(
        dict(zip(("before", "fine-tuned", "nudged"), stages.values(), strict=True)),
        finetuned=finetuned,
        nudged=nudged,
        index=index,
        dataset=test,
        folders=[folder / "encoder", folder / "state"],
    ).save(folder / "report.html")
    undone = MemoryIndex.load(folder / "vectors.parquet")
    if nudged.folder.state is not None:
        restore(nudged.folder.state, undone)
    undone_exactly = np.array_equal(undone.vectors(list(train.corpus)), before)
    timed("write", begun)
    first, *_, last = stages.values()
    return DemoResult(
        stages=stages,
        gain=compare(first, last),
        finetuned=finetuned,
        nudged=nudged,
        undone=bool(undone_exactly),
        seconds=seconds,
    )
