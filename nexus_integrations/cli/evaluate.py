"""`nexus evaluate` and `nexus report`: how well vectors answer, and what came of the work."""

from pathlib import Path
from typing import Annotated

import typer

from nexus_integrations.cli.inputs import check_free, existing, model_name, read_questions
from nexus_integrations.cli.options import DATASET_HELP, AsJson, Force, Model, Vectors
from nexus_integrations.cli.output import Output
from nexus_integrations.cli.tune import opened


def evaluate(
    vectors: Vectors,
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save the evaluation here, for --against and report."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier evaluation of the same questions to compare with."),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(help="The training questions: count the questions that repeat one of them."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well vectors, or a tuned folder, answer questions, with 95 % intervals.

    nDCG@10 rewards right passages near the top of the first ten; MRR@10 is one over the rank of the
    first right passage; recall@k is the share of right passages among the first k. All lie in 0..1.
    """
    check_free(output, force=force)

    from nexus_integrations import DendriticEncoder, DenseRetriever, Evaluation, compare
    from nexus_integrations import evaluate as run
    from nexus_integrations.index import MemoryIndex

    before = None if against is None else Evaluation.load(existing(against))
    existing(vectors)
    questions = read_questions(dataset)
    trained = None if trained_on is None else read_questions(trained_on)
    if vectors.is_dir():
        if model is not None:
            raise ValueError(f"{vectors} has an encoder of its own: leave out --model")
        retriever = opened(vectors).retriever
    else:
        index = MemoryIndex.load(vectors)
        retriever = DenseRetriever(index, DendriticEncoder.load(model_name(model)))
    after = run(retriever, questions, trained_on=trained)
    if output is not None:
        after.save(output)
    if before is None:
        Output(as_json).result(after)
    else:
        change = compare(before, after)
        Output(as_json).result(after, "", str(change), comparison=change.to_json())


Evaluations = Annotated[
    list[Path],
    typer.Argument(
        help="Two or more evaluations of the same questions (`nexus evaluate -o`), the first "
        "before, the last after; each is called by its file's name."
    ),
]
TunedModel = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="The folder of a tuned encoder: how its heads were trained."
    ),
]
NudgeState = Annotated[
    Path | None,
    typer.Option("--state", help="The state of a nudge: which documents moved, and how far."),
]
MapVectors = Annotated[
    Path | None,
    typer.Option(help="The document vectors: the map shows those that did not move as well."),
]
Texts = Annotated[
    str | None, typer.Option(help=f"Where --include-text finds its texts. {DATASET_HELP}")
]
IncludeText = Annotated[
    bool, typer.Option("--include-text", help="Show questions and passages, not ids alone.")
]


def report(
    evaluations: Evaluations,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    model: TunedModel = None,
    state: NudgeState = None,
    vectors: MapVectors = None,
    dataset: Texts = None,
    include_text: IncludeText = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write what was done, and what came of it, as one HTML page that loads nothing."""
    if include_text != (dataset is not None):
        raise typer.BadParameter("--include-text and --dataset go together")
    check_free(output, force=force)

    from nexus_integrations import Evaluation, FinetuneResult, Report
    from nexus_integrations.index import MemoryIndex
    from nexus_integrations.nudge import StateFolder

    stages = {path.stem: Evaluation.load(existing(path)) for path in evaluations}
    if len(stages) < len(evaluations):
        raise ValueError("two of the evaluations have the same file name: rename one")
    for folder in (model, state):
        if folder is not None and not existing(folder).is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
    told = Output(as_json)
    training = None
    if model is not None and (model / "training.json").exists():
        training = FinetuneResult.load(model)
    elif model is not None:
        told.tell(f"{model} has no training.json: the report does not say how it was trained")
    made = Report.of(
        stages,
        finetuned=training,
        nudged=None if state is None else StateFolder(state),
        index=None if vectors is None else MemoryIndex.load(existing(vectors)),
        dataset=None if dataset is None else read_questions(dataset),
        folders=[folder for folder in (model, state) if folder is not None],
    )
    made.save(output, include_text=include_text)
    told.result(made.comparison, f"Written to {output}.", output=str(output))
