"""The command line: `nexus --help` lists its commands.

Exit status: 0 when done, 1 for an error that the message explains, 2 for a command that was typed
wrongly. Results go to standard output, everything else to standard error.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nexus_integrations.extras import extra

# What each command works with is imported when it runs, so that --help answers at once.
if TYPE_CHECKING:
    from nexus_integrations.data import RetrievalDataset
    from nexus_integrations.evaluation import Comparison, Evaluation
    from nexus_integrations.nudge import NudgeResult
    from nexus_integrations.training.loggers import OnEpoch
    from nexus_integrations.training.record import Epoch

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_errors = Console(stderr=True, highlight=False)

_DATASET_HELP = (
    "A dataset: a JSON file with queries, corpus and relevant_docs (LlamaIndex's "
    "EmbeddingQAFinetuneDataset), or a BEIR folder, with a split as in folder:train."
)
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A saved encoder, or any sentence-transformers model: folder or hub name. "
        "By default all-MiniLM-L6-v2.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Vectors = Annotated[
    Path, typer.Argument(help="Document vectors: a Parquet file that `nexus embed` wrote.")
]


@dataclass(frozen=True)
class Reporter:
    """Where a command's words go: progress to standard error, the result to standard output."""

    as_json: bool

    def tell(self, line: str) -> None:
        """Tell the user about a step; programs that asked for JSON are spared."""
        if not self.as_json:
            _errors.print(line, style="dim", markup=False, soft_wrap=True)

    def result(self, content: Mapping[str, Any], *shown: Table | str) -> None:
        """Print the result, as JSON or as people read it."""
        if self.as_json:
            typer.echo(json.dumps(content, ensure_ascii=False, indent=1))
        else:
            console = Console(highlight=False)
            for part in shown:
                # A path may hold what markup would swallow.
                console.print(part, markup=False, soft_wrap=not isinstance(part, Table))


@contextmanager
def _reported_errors() -> Iterator[None]:
    """Turn the errors that our messages explain into one line and exit status 1."""
    try:
        with extra("train"):
            yield
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        _errors.print(f"[bold red]error:[/bold red] {escape(str(message))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _errors.print("stopped")
        raise typer.Exit(1) from None


@app.callback()
def nexus() -> None:
    """Make a private retrieval index answer better, on the machine where it lives."""
    # Threads that spin while they wait make a busy machine many times slower. OpenMP reads this
    # when torch is imported, which the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "nexus-demo"
    ),
    dendrites: Annotated[
        int, typer.Option(min=0, help="How many dendrites may grow; 0 needs no perforatedai.")
    ] = 3,
    side: Annotated[
        Literal["query", "shared", "separate"], typer.Option(help="Which vectors heads map.")
    ] = "query",
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run the main job on the shipped corpus: baseline, fine-tune, nudge, evaluate, undo."""
    with _reported_errors():
        from nexus_integrations.demo import run
        from nexus_integrations.training.recipe import FinetuneConfig

        reporter = Reporter(as_json)
        config = FinetuneConfig(dendrites=dendrites, heads=side, seed=seed)
        result = run(output, config, tell=reporter.tell)
        head = result.finetuned.encoder.query_head
        nudged = result.nudged
        content = {
            "stages": {
                name: replace(stage, hits=None, relevant=[]).to_json()  # the report shows these
                for name, stage in result.stages.items()
            },
            "gain": result.gain.to_json(),
            "dendrites": 0 if head is None else head.dendrites,
            "gamma": nudged.gamma,
            "moved": nudged.moved,
            "written": nudged.written,
            "undone": result.undone,
            "seconds": result.seconds,
            "output": str(output),
        }
        total = sum(result.seconds.values())
        reporter.result(
            content,
            _stages_table(result.stages),
            _gain_line(result.gain, "ndcg@10"),
            f"{content['dendrites']} dendrites grew. {_nudge_line(nudged)}",
            f"Undoing the nudge gives the index back bit for bit: "
            f"{'yes' if result.undone else 'NO'}.",
            f"{total:.0f} s in all ({', '.join(f'{k} {v:.0f}' for k, v in result.seconds.items())})"
            f". The tuned encoder, its state, the plots growth.png and gamma.png and report.html, "
            f"to open in a browser, are in {output}.",
        )


@app.command()
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="JSONL, CSV, TSV or Parquet files (text also with .gz), folders of such files, or "
            "a dataset: a JSON file, or a BEIR folder."
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="The file to write: .parquet (id, vector), or .npy with the ids beside it."
        ),
    ],
    model: Model = None,
    role: Annotated[
        Literal["document", "query"], typer.Option(help="Embed as documents or as queries.")
    ] = "document",
    id_column: Annotated[
        str | None, typer.Option(help="The column of ids; else found by the usual names.")
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(help="The column of texts; several, each with this option, are joined."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows out, and list them in a file.")
    ] = False,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Rows that are embedded and written at a time.")
    ] = 4096,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run has done.")
    ] = False,
    backend: Annotated[
        Literal["auto", "torch", "onnx"], typer.Option(help="What runs the model.")
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bfloat16", "int8", "auto"] | None,
        typer.Option(
            help="int8 and bfloat16 are quicker, and change the vectors a little. By default "
            "float32, or that of an exported folder.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="ray: a cluster, that of RAY_ADDRESS or of this machine."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers; else one per machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus of any size into a file of vectors; run it again after an interruption."""
    with _reported_errors():
        from nexus_integrations.encoder import DendriticEncoder
        from nexus_integrations.jobs import JobConfig, embed_corpus

        if workers is not None and engine == "local":
            raise typer.BadParameter("--workers is for --engine ray")
        if model is not None and Path(model).expanduser().is_dir():
            model = str(Path(model).expanduser().resolve())  # workers have other folders
        report = embed_corpus(
            inputs,
            output,
            partial(DendriticEncoder.load, model, backend=backend, precision=precision),
            JobConfig(
                role=role,
                id_column=id_column,
                text_columns=tuple(text_column or ()),
                shard_rows=shard_rows,
                skip_bad=skip_bad,
                restart=restart,
                engine=engine,
                workers=workers,
            ),
        )
        embedded = report.rows - report.resumed
        counts = {
            "rows": report.rows,
            "dimension": report.dimension,
            "truncated": report.truncated,
            "blank": report.blank,
            "rejected": report.rejected,
            "resumed": report.resumed,
            "seconds": report.seconds,
        }
        content = {
            **counts,
            f"{role}_fingerprint": report.fingerprint,
            "output": str(report.output),
            **({} if report.ids is None else {"ids": str(report.ids)}),
            **({} if report.rejects is None else {"rejects": str(report.rejects)}),
        }
        beside = "" if report.ids is None else f", their ids in {report.ids}"
        notes = [
            f"{report.truncated} texts were cut off at the model's longest length."
            if report.truncated
            else "",
            f"{report.blank} texts are blank: their vectors mean nothing." if report.blank else "",
            f"{report.rejected} bad rows were left out: {report.rejects}."
            if report.rejects
            else "",
            f"{report.resumed} rows had been embedded by an earlier run." if report.resumed else "",
        ]
        Reporter(as_json).result(
            content,
            f"{report.rows} {'queries' if role == 'query' else 'documents'} in {report.output}"
            f"{beside}; {embedded} embedded in {report.seconds:.0f} s, "
            f"{embedded / report.seconds:.0f} rows/s.",
            *(note for note in notes if note),
        )


@app.command()
def finetune(
    train: Annotated[str, typer.Argument(help=_DATASET_HELP)],
    output: Annotated[Path, typer.Argument(help="The folder to save the tuned encoder to.")],
    dev: Annotated[
        str | None, typer.Option(help="Questions to choose by; else a share of TRAIN is split off.")
    ] = None,
    model: Model = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Document vectors of this model (`nexus embed`): no passage is embedded."
        ),
    ] = None,
    side: Annotated[
        Literal["query", "shared", "separate"],
        typer.Option(help="query: stored vectors stay valid. both, each: embed the corpus again."),
    ] = "query",
    dendrites: Annotated[int, typer.Option(min=0, help="0 trains a linear head.")] = 3,
    refit: Annotated[
        bool, typer.Option(help="Train once more on TRAIN and DEV together, as dev advised.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the growth to this PNG.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Log every epoch's figures to this folder, for TensorBoard.")
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            help="Log them to an offline run of this Weights & Biases project, below the working "
            "directory."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train dendritic heads on questions and the passages that answer them."""
    with _reported_errors():
        from nexus_integrations.encoder import DendriticEncoder
        from nexus_integrations.hub import model_card, write_card
        from nexus_integrations.index import MemoryIndex
        from nexus_integrations.report.plots import plot_growth
        from nexus_integrations.training.loggers import tensorboard_logger, wandb_logger
        from nexus_integrations.training.recipe import FinetuneConfig
        from nexus_integrations.training.recipe import finetune as run

        _check_free(output)
        config = FinetuneConfig(heads=side, dendrites=dendrites, refit=refit, seed=seed)
        data = {"train": _dataset(train)}
        if dev is not None:
            data["dev"] = _dataset(dev)
        with ExitStack() as stack:
            loggers: list[OnEpoch] = []
            if tensorboard is not None:
                loggers.append(stack.enter_context(tensorboard_logger(tensorboard)))
            if wandb is not None:
                settings = {k: v for k, v in config.settings().items() if v is not None}
                loggers.append(stack.enter_context(wandb_logger(wandb, settings=settings)))

            def tell(epoch: "Epoch") -> None:
                for log in loggers:
                    log(epoch)

            result = run(
                DendriticEncoder.load(model),
                data["train"],
                data.get("dev"),
                config,
                index=None if vectors is None else MemoryIndex.load(vectors),
                on_epoch=tell,
            )
        result.save(output)
        write_card(output, model_card(result.encoder, training=result, config=config, data=data))
        if plot is not None:
            plot_growth(result.history, result.baseline_score, plot)
        head = result.encoder.query_head
        grown = 0 if head is None else head.dendrites
        content = {
            "dev_ndcg@10": {"before": result.baseline_score, "after": result.score},
            "dev_source": result.dev_source,
            "gamma": result.gamma,
            "dropped": result.dropped,
            "repeated": result.repeated,
            "dendrites": grown,
            "seconds": result.seconds,
            "embedding_seconds": result.embedding_seconds,
            "fingerprint": result.encoder.fingerprint,
            "output": str(output),
            "history": [asdict(epoch) for epoch in result.history],
        }
        Reporter(as_json).result(
            content,
            f"dev nDCG@10 {result.baseline_score:.4f} → {result.score:.4f} with {grown} dendrites "
            f"in {result.seconds:.0f} s (and {result.embedding_seconds:.0f} s of embedding); the "
            f"dev set was {result.dev_source}. γ = {result.gamma:g} suits dev best.",
            *_dropped(result.dropped),
            *_repeated(result.repeated),
            f"Saved to {output}.",
        )


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Model = None,
    precision: Annotated[
        Literal["float32", "int8", "auto"],
        typer.Option(
            help="float32: the same vectors. int8: faster. auto: int8 if its loss is small."
        ),
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Write a model, with its heads, to a folder that embeds without PyTorch."""
    with _reported_errors():
        from nexus_integrations.encoder import DendriticEncoder

        DendriticEncoder.load(model).export(output, precision)
        encoder = DendriticEncoder.load(output)  # every file is compared with its hash
        size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        content = {
            "precision": encoder.backbone.precision,
            "dimension": encoder.dimension,
            "max_length": encoder.max_length,
            "fingerprint": encoder.fingerprint,
            "bytes": size,
            "output": str(output),
        }
        Reporter(as_json).result(
            content,
            f"{encoder.backbone.precision}, {encoder.dimension} dimensions, {size / 1e6:.0f} MB in "
            f'{output}. It runs where pip install "nexus-integrations[runtime]" was.',
        )


@app.command()
def nudge(
    vectors: Vectors,
    state: Annotated[
        Path, typer.Option("--state", help="Where to keep what undoes the nudge.")
    ] = Path("nudge-state"),
    train: Annotated[str | None, typer.Option(help=_DATASET_HELP)] = None,
    dev: Annotated[
        str | None, typer.Option(help="Questions to choose γ by; else cross-validation.")
    ] = None,
    model: Model = None,
    gamma: Annotated[
        float | None, typer.Option(help="How far to move at most; else chosen.", show_default=False)
    ] = None,
    metric: Annotated[str, typer.Option(help="What chooses γ.")] = "ndcg@10",
    keep: Annotated[
        Literal["if-better", "always"],
        typer.Option(help="if-better: write only what helps questions that did not choose γ."),
    ] = "if-better",
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Ask for a gain that is positive at this confidence.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, and write nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Put the base vectors back.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the γ curve to this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Move stored document vectors towards the questions they answer, or undo that."""
    with _reported_errors():
        from nexus_integrations.encoder import DendriticEncoder
        from nexus_integrations.index import FileIndex
        from nexus_integrations.nudge import NudgeConfig, StateFolder, nudge_index
        from nexus_integrations.nudge.record import NudgeRecord
        from nexus_integrations.report.plots import plot_gamma

        if undo == (train is not None):
            raise typer.BadParameter("give either --train, to nudge, or --undo")
        reporter = Reporter(as_json)
        index = FileIndex(vectors)
        if undo:
            folder = StateFolder(state)
            if folder.state is None:
                raise ValueError(f"{state} holds no nudge to undo")
            restored = folder.undo(index)
            reporter.result({"restored": restored}, f"{restored} vectors put back in {vectors}.")
            return
        encoder = DendriticEncoder.load(model)
        report = nudge_index(
            index,
            encoder,
            _dataset(str(train)),
            None if dev is None else _dataset(dev),
            NudgeConfig(
                gamma=gamma, metric=metric, keep=keep, confidence=confidence, dry_run=dry_run
            ),
            state_dir=state,
        )
        if not dry_run:
            NudgeRecord.of(report, encoder.fingerprint).save(state)
        if plot is not None:
            plot_gamma(report.curve, report.gamma, report.metric, plot)
        content = {
            "gamma": report.gamma,
            "chosen_by": report.chosen_by,
            "metric": report.metric,
            "curve": [[value, score] for value, score in report.curve.items()],
            "queries": report.queries,
            "touched": report.touched,
            "moved": report.moved,
            "written": report.written,
            "gain": report.gain,
            "interval": report.interval,
            "dropped": report.dropped,
            "seconds": report.seconds,
            "state": str(state),
        }
        reporter.result(
            content,
            _nudge_line(report),
            *_dropped(report.dropped),
            *([f"To undo: nexus nudge {vectors} --state {state} --undo"] if report.written else []),
        )


@app.command()
def evaluate(
    vectors: Vectors,
    dataset: Annotated[str, typer.Argument(help=_DATASET_HELP)],
    model: Model = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier --json output to compare with, query by query.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well the vectors answer a dataset's questions, with 95 % intervals."""
    with _reported_errors():
        from nexus_integrations.encoder import DendriticEncoder
        from nexus_integrations.evaluation import Evaluation, compare
        from nexus_integrations.evaluation import evaluate as run
        from nexus_integrations.index import MemoryIndex
        from nexus_integrations.retrievers import DenseRetriever

        index = MemoryIndex.load(vectors)
        after = run(DenseRetriever(index, DendriticEncoder.load(model)), _dataset(dataset))
        content = after.to_json()
        shown: list[Table | str] = [_stages_table({"": after})]
        if against is not None:
            before = Evaluation.load(against)
            change = compare(before, after)
            content["comparison"] = change.to_json()
            shown = [
                _stages_table({"before": before, "after": after}),
                *(_gain_line(change, metric) for metric in change.differences),
            ]
        Reporter(as_json).result(content, *shown)


@app.command()
def report(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more outputs of `nexus evaluate --json` for the same questions, the first "
            "before, the last after; each is called by its file's name."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="The folder of a tuned encoder: how its heads were trained."
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="The state of a nudge: what moved, and γ.")
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="The document vectors, to show those that stayed behind those moved."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"Where --include-text finds its texts. {_DATASET_HELP}")
    ] = None,
    include_text: Annotated[
        bool, typer.Option("--include-text", help="Show questions and passages, not ids alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write what was done, and what came of it, as one HTML page that loads nothing."""
    with _reported_errors():
        from nexus_integrations.evaluation import Evaluation
        from nexus_integrations.index import MemoryIndex
        from nexus_integrations.nudge import StateFolder
        from nexus_integrations.report import Report, TrainingRecord

        if include_text != (dataset is not None):
            raise typer.BadParameter("--include-text and --dataset go together")
        stages = {path.stem: Evaluation.load(path) for path in evaluations}
        if len(stages) < len(evaluations):
            raise ValueError("two of the evaluations have the same file name: rename one")
        for folder in (model, state):
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(f"{folder} is no folder")
        reporter = Reporter(as_json)
        training = None if model is None else TrainingRecord.load(model)
        if model is not None and training is None:
            reporter.tell(f"{model} has no training.json: how it was trained is left out")
        made = Report.of(
            stages,
            finetuned=training,
            nudged=None if state is None else StateFolder(state),
            index=None if vectors is None else MemoryIndex.load(vectors),
            dataset=None if dataset is None else _dataset(dataset),
            folders=[folder for folder in (model, state) if folder is not None],
        )
        made.save(output, include_text=include_text)
        content = {
            "report": str(output),
            "questions": len(made.before.query_ids),
            "bytes": output.stat().st_size,
            "comparison": made.comparison.to_json(),
        }
        reporter.result(
            content,
            *(_gain_line(made.comparison, metric) for metric in made.comparison.differences),
            f"Written to {output}.",
        )


def _check_free(folder: Path) -> None:
    """Raise before the training what saving to this folder would raise after it."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: name a folder to save the encoder to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "nexus.json").is_file():
        raise FileExistsError(f"{folder} holds something other than a saved encoder")


def _dataset(name: str) -> "RetrievalDataset":
    """Read `file.json`, `folder` or `folder:split`."""
    from nexus_integrations.data import RetrievalDataset

    folder, _, split = name.rpartition(":")
    if folder and Path(folder).is_dir():
        return RetrievalDataset.from_beir(folder, split=split)
    if Path(name).is_dir():
        return RetrievalDataset.from_beir(name)
    return RetrievalDataset.from_json(name)


def _stages_table(stages: "Mapping[str, Evaluation]") -> Table:
    confidence = next(iter(stages.values())).confidence
    table = Table(title=f"mean ({confidence:.0%} interval)", title_justify="left")
    table.add_column("metric")
    for name in stages:
        table.add_column(name, justify="right", no_wrap=True)
    for metric in next(iter(stages.values())).metrics:
        cells = []
        for stage in stages.values():
            low, high = stage.intervals[metric]
            cells.append(f"{stage.metrics[metric]:.3f} ({low:.3f}-{high:.3f})")
        table.add_row(metric, *cells)
    return table


def _gain_line(change: "Comparison", metric: str) -> str:
    low, high = change.intervals[metric]
    return (
        f"{metric}: {change.differences[metric]:+.3f}, {change.confidence:.0%} interval "
        f"{low:+.3f} to {high:+.3f}; {change.wins[metric]} questions better, "
        f"{change.losses[metric]} worse, {change.ties[metric]} equal."
    )


def _nudge_line(report: "NudgeResult") -> str:
    judged = ""
    if report.gain is not None and report.interval is not None:
        low, high = report.interval
        judged = (
            f" Questions that did not choose γ gained {report.gain:+.4f} {report.metric} "
            f"({low:+.4f} to {high:+.4f})."
        )
    if report.written:
        return (
            f"γ = {report.gamma:g} ({report.chosen_by}) moved {report.moved} of {report.touched} "
            f"documents that answer {report.queries} questions, in {report.seconds:.1f} s.{judged}"
        )
    return f"The nudge was not written (γ = {report.gamma:g}, {report.chosen_by}).{judged}"


def _repeated(count: int) -> list[str]:
    nearly = "nearly repeat a training question: the dev score tells less of new questions."
    return [f"{count} dev questions {nearly}"] if count else []


def _dropped(count: int) -> list[str]:
    return [f"{count} questions without a relevant passage were left out."] if count else []
