"""`nexus nudge …`: move stored document vectors, learn from one more answer, forget, undo."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nexus_integrations.cli.inputs import check_free, existing, model_name, read_questions
from nexus_integrations.cli.options import DATASET_HELP, AsJson, Force, Model, State, Vectors
from nexus_integrations.cli.output import Output

if TYPE_CHECKING:
    from nexus_integrations.nudge import StateFolder

app = typer.Typer(
    no_args_is_help=True,
    help="Move stored document vectors towards the questions that they answer (NUDGE), and back.",
)
_STATE = Path("nudge-state")


Gamma = Annotated[
    float | None,
    typer.Option(
        help="γ, the bound on how far a document moves (a squared distance of unit vectors); "
        "else chosen.",
        show_default=False,
    ),
]
Keep = Annotated[
    Literal["if-better", "always"] | None,
    typer.Option(
        help="if-better, the default: write only what helps questions that did not choose γ.",
        show_default=False,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(help="Ask for a gain that is positive at this confidence.", show_default=False),
]


@app.command()
def apply(
    vectors: Vectors,
    train: Annotated[str, typer.Argument(help=DATASET_HELP)],
    dev: Annotated[
        str | None, typer.Option(help="Questions to choose γ by; else cross-validation.")
    ] = None,
    model: Model = None,
    state: State = _STATE,
    gamma: Gamma = None,
    metric: Annotated[
        str | None, typer.Option(help="What chooses γ; by default ndcg@10.", show_default=False)
    ] = None,
    keep: Keep = None,
    confidence: Confidence = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, and write nothing.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the metric at each γ to this PNG.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Move the documents that answer questions, if that helps other questions."""
    check_free(plot, force=force)

    from nexus_integrations import DendriticEncoder, NudgeConfig, nudge_index
    from nexus_integrations.index import FileIndex
    from nexus_integrations.report.plots import plot_gamma

    index = FileIndex(existing(vectors))
    questions = read_questions(train, training=True)
    judges = None if dev is None else read_questions(dev, training=True)
    encoder = DendriticEncoder.load(model_name(model))
    config = NudgeConfig(
        gamma=gamma, metric=metric, keep=keep, confidence=confidence, dry_run=dry_run
    )
    result = nudge_index(index, encoder, questions, judges, config, state_dir=state)
    if plot is not None:
        plot_gamma(result.curve, result.gamma, result.metric, plot)
    undo = f"To undo: nexus nudge undo {vectors} --state {state}" if result.written else ""
    Output(as_json).result(result, undo, state=str(state))


@app.command()
def undo(
    vectors: Vectors, state: State = _STATE, force: Force = False, as_json: AsJson = False
) -> None:
    """Put the vectors from before the nudge back."""
    from nexus_integrations.index import FileIndex

    index = FileIndex(existing(vectors))
    restored = _opened(state).undo(index, force=force)
    Output(as_json).result(None, f"{restored} vectors put back in {vectors}.", restored=restored)


@app.command()
def observe(
    vectors: Vectors,
    document: Annotated[str, typer.Argument(help="The id of the document that answered.")],
    question: Annotated[
        str, typer.Option(help="The question's text; by default read from standard input.")
    ] = "-",
    question_id: Annotated[
        str | None, typer.Option("--id", help="The question's id; else made from its text.")
    ] = None,
    model: Model = None,
    state: State = _STATE,
    as_json: AsJson = False,
) -> None:
    """Learn from one more question and the document that answered it."""
    from hashlib import sha256

    from nexus_integrations import DendriticEncoder
    from nexus_integrations.index import FileIndex

    index = FileIndex(existing(vectors))
    folder = _opened(state)
    encoder = DendriticEncoder.load(model_name(model))
    text = sys.stdin.read().strip() if question == "-" else question
    if not text:
        raise ValueError("the question is blank")
    named = question_id or f"sha256-{sha256(text.encode()).hexdigest()}"
    folder.observe(
        index,
        encoder.encode_queries([text])[0],
        document,
        query_id=named,
        fingerprint=encoder.fingerprint,
    )
    Output(as_json).result(
        None, f"Question {named} moved document {document}.", question=named, document=document
    )


@app.command()
def forget(
    vectors: Vectors,
    questions: Annotated[list[str], typer.Argument(help="Ids of questions.")],
    state: State = _STATE,
    as_json: AsJson = False,
) -> None:
    """Undo what questions did to the vectors, and remove them from the state."""
    from nexus_integrations.index import FileIndex

    index, folder = FileIndex(existing(vectors)), _opened(state)
    held = set() if folder.state is None else set(folder.state.query_ids)
    unknown = [id_ for id_ in questions if id_ not in held]
    if unknown:
        raise ValueError(
            f"{state} holds no question {unknown[0]!r} ({len(unknown)} such ids of "
            f"{len(questions)}): nothing was forgotten"
        )
    forgotten = folder.forget(index, set(questions).__contains__)
    Output(as_json).result(forgotten)


@app.command()
def refresh(
    vectors: Vectors,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Where the documents' texts are now, to see what changed. {DATASET_HELP}"
        ),
    ] = None,
    state: State = _STATE,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Bring state and vectors back in line after documents changed or were embedded anew."""
    from nexus_integrations.index import FileIndex

    corpus = None if dataset is None else read_questions(dataset).corpus
    counts = _opened(state).refresh(FileIndex(existing(vectors)), corpus, force=force)
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    Output(as_json).result(None, f"Documents of the nudge: {told}.", **counts)


@app.command()
def status(
    state: Annotated[Path, typer.Argument(help="The folder of a nudge's state.")] = _STATE,
    as_json: AsJson = False,
) -> None:
    """Tell what is nudged: questions, documents, γ, and whether a write was cut off."""
    from nexus_integrations.nudge import NudgeResult

    folder = _opened(state)
    assert folder.state is not None
    record = NudgeResult.of_state(folder.state, NudgeResult.of_folder(state))
    unsettled = "" if folder.settled else "A write was cut off: the next operation finishes it."
    Output(as_json).result(record, unsettled, settled=folder.settled)


def _opened(state: Path) -> "StateFolder":
    """Open the folder of a nudge that is in place; raise `ValueError` where there is none."""
    from nexus_integrations.nudge import StateFolder

    folder = StateFolder(existing(state))
    if folder.state is None:
        raise ValueError(f"{state} holds no nudge: nothing is moved, so there is nothing to change")
    return folder
