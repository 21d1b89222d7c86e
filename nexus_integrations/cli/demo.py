"""`nexus demo`: the whole job on the shipped corpus."""

from pathlib import Path
from typing import Annotated

import typer

from nexus_integrations.cli import options
from nexus_integrations.cli.inputs import check_free
from nexus_integrations.cli.options import AsJson, Force
from nexus_integrations.cli.output import Output


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "nexus-demo"
    ),
    dendrites: options.Dendrites = 3,
    heads: options.Heads = None,
    seed: options.Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run the main job on the shipped corpus: measure, fine-tune, nudge, measure again, undo."""
    check_free(output, force=force)

    from nexus_integrations import FinetuneConfig
    from nexus_integrations.demo import run

    told = Output(as_json)
    config = FinetuneConfig(dendrites=dendrites, seed=seed, heads=heads)
    result = run(output, config, tell=told.tell)
    told.result(
        result,
        f"Open {output / 'report.html'} in a browser. Beside it lie the tuned encoder, the nudge's "
        "state, the vectors, and the plots growth.png and gamma.png.",
        output=str(output),
    )
