"""`nexus finetune` and `nexus export`: a tuned encoder, and the folder that runs it elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nexus_integrations.cli import options
from nexus_integrations.cli.inputs import (
    check_free,
    check_free_for_encoder,
    existing,
    model_name,
    read_training_data,
)
from nexus_integrations.cli.options import AsJson, Force, Model
from nexus_integrations.cli.output import Output

_TRAIN_HELP = (
    f"{options.DATASET_HELP} Or sentence pairs: a CSV file (also .csv.gz) of two sentences and a "
    "score."
)


Dev = Annotated[
    str | None,
    typer.Option(help="Questions (or pairs) to choose by; else a share of TRAIN is split off."),
]
BaseVectors = Annotated[
    Path | None,
    typer.Option(help="Document vectors of this model (`nexus embed`): no passage is embedded."),
]
Refit = Annotated[
    bool,
    typer.Option(help="Train once more on TRAIN and DEV together, with the size dev chose."),
]


def finetune(
    train: Annotated[str, typer.Argument(help=_TRAIN_HELP)],
    output: Annotated[Path, typer.Argument(help="The folder to save the tuned encoder to.")],
    dev: Dev = None,
    model: Model = None,
    vectors: BaseVectors = None,
    scale: Annotated[
        tuple[float, float], typer.Option(help="The lowest and highest score of sentence pairs.")
    ] = (0.0, 5.0),
    heads: options.Heads = None,
    dendrites: options.Dendrites = 3,
    refit: Refit = False,
    seed: options.Seed = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the growth to this PNG.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train dendritic heads on questions and the passages that answer them, or sentence pairs."""
    check_free_for_encoder(output, force=force)
    check_free(plot, force=force)
    data = {"train": read_training_data(train, scale)}
    if dev is not None:
        data["dev"] = read_training_data(dev, scale)

    from nexus_integrations import DendriticEncoder, FinetuneConfig
    from nexus_integrations import finetune as run
    from nexus_integrations.card import model_card, write_card
    from nexus_integrations.index import MemoryIndex
    from nexus_integrations.report.plots import plot_growth

    config = FinetuneConfig(dendrites=dendrites, refit=refit, seed=seed, heads=heads)
    result = run(
        DendriticEncoder.load(model_name(model)),
        data["train"],
        data.get("dev"),
        config,
        index=None if vectors is None else MemoryIndex.load(existing(vectors)),
    )
    result.save(output)
    write_card(output, model_card(result.encoder, training=result, data=data))
    if plot is not None:
        plot_growth(result.history, result.baseline_score, plot)
    Output(as_json).result(result, f"Saved to {output}.", output=str(output))


def export(
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Model = None,
    precision: Annotated[
        Literal["float32", "int8", "auto"],
        typer.Option(
            help="float32: the same vectors. int8: faster. auto: int8 if its loss is small."
        ),
    ] = "float32",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a model, with its heads, to a folder that embeds without PyTorch."""
    check_free(output, force=force)

    from nexus_integrations import DendriticEncoder

    DendriticEncoder.load(model_name(model)).export(output, precision)
    encoder = DendriticEncoder.load(output)  # every file is compared with its hash
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    found = {
        "precision": encoder.backbone.precision,
        "dimension": encoder.dimension,
        "max_length": encoder.max_length,
        "fingerprint": encoder.fingerprint,
        "bytes": size,
        "output": str(output),
    }
    Output(as_json).result(
        None,
        f"{found['precision']}, {encoder.dimension} dimensions, {size / 1e6:.0f} MB in {output}. "
        'It needs pip install "nexus-integrations[runtime]" and no PyTorch.',
        **found,
    )
