"""`nexus embed`: a corpus to a file of vectors."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus_integrations.cli.inputs import check_free, model_name
from nexus_integrations.cli.options import AsJson, Force, Model
from nexus_integrations.cli.output import Output

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="JSONL, CSV, TSV or Parquet files (text also with .gz), folders of such files, or "
        "a dataset: a JSON file, or a BEIR folder."
    ),
]
OutputFile = Annotated[
    Path,
    typer.Argument(
        help="The file to write: .parquet (id, vector), or .npy with the ids beside it."
    ),
]
Role = Annotated[
    Literal["document", "query"], typer.Option(help="Embed as documents or as queries.")
]
IdColumn = Annotated[
    str | None, typer.Option(help="The column of ids; else found by the usual names.")
]
TextColumns = Annotated[
    list[str] | None,
    typer.Option(help="The column of texts. Give the option again to join several columns."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad rows out, and list them in a file.")
]
ShardRows = Annotated[
    int, typer.Option(min=1, help="Rows that are embedded and written at a time.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw away what an interrupted run has done.")
]
Backend = Annotated[Literal["auto", "torch", "onnx"], typer.Option(help="What runs the model.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "int8", "auto"] | None,
    typer.Option(
        help="int8 and bfloat16 are faster, and change the vectors a little. By default "
        "float32, or that of an exported folder.",
        show_default=False,
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="ray: the cluster of RAY_ADDRESS, or one on this machine."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Ray workers; else one per machine.")]


def embed(
    inputs: Inputs,
    output: OutputFile,
    model: Model = None,
    role: Role = "document",
    id_column: IdColumn = None,
    text_column: TextColumns = None,
    skip_bad: SkipBad = False,
    shard_rows: ShardRows = 4096,
    restart: Restart = False,
    backend: Backend = "auto",
    precision: Precision = None,
    engine: Engine = "local",
    workers: Workers = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus of any size into a file of vectors; run it again after an interruption."""
    from nexus_integrations.encoder import DendriticEncoder
    from nexus_integrations.jobs import JobConfig, embed_corpus

    if workers is not None and engine == "local":
        raise typer.BadParameter("--workers is for --engine ray")
    check_free(output, force=force)
    model = model_name(model)
    if model is not None and Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())  # workers have other working directories
    result = embed_corpus(
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
    Output(as_json).result(result)
