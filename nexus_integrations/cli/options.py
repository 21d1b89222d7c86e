"""The arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DATASET_HELP = (
    "Questions with their passages: a folder in the BEIR layout and one of its splits, as in "
    "data:train, or a JSON file with queries, corpus and relevant_docs (LlamaIndex's "
    "EmbeddingQAFinetuneDataset)."
)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="The folder of a saved encoder or of a sentence-transformers model, or a model's name "
        "on the Hugging Face hub. By default all-MiniLM-L6-v2, which reads English.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Vectors = Annotated[
    Path, typer.Argument(help="Document vectors: a Parquet file that `nexus embed` wrote.")
]
State = Annotated[
    Path,
    typer.Option("--state", help="The folder that keeps what undoes the nudge.", show_default=True),
]
Heads = Annotated[
    Literal["query", "shared", "separate"] | None,
    typer.Option(
        help="Which vectors the heads map. query: those of questions alone, so that stored vectors "
        "stay valid. shared: those of both sides, by one head. separate: those of each side, by a "
        "head of its own. After the last two, embed the documents again.",
        show_default=False,
    ),
]
Dendrites = Annotated[
    int,
    typer.Option(
        min=0,
        help="How many dendrites (small units that extend a head where it still errs) may grow. "
        "0 trains a linear head, which takes seconds and needs no perforatedai.",
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of the training.")]
