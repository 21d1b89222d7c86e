"""The command line: `nexus --help` lists its commands.

Exit status: 0 when done, 1 for an error that the message explains, 2 for a command that was typed
wrongly. Results go to standard output, everything else to standard error.
"""

import os
from typing import Annotated

import typer

import nexus_integrations
from nexus_integrations.cli import demo, embed, evaluate, nudge, train, tune
from nexus_integrations.cli.output import ReportingGroup

__all__ = ["app"]

app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    demo.demo,
    tune.label,
    tune.tune,
    tune.search,
    embed.embed,
    train.finetune,
    train.export,
    evaluate.evaluate,
    evaluate.report,
):
    app.command()(_command)
app.add_typer(nudge.app, name="nudge")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(nexus_integrations.__version__)
        raise typer.Exit


@app.callback()
def nexus(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Make a private retrieval index answer better, on the machine where it lives."""
    # Threads that spin while they wait make a busy machine many times slower. OpenMP reads this
    # when PyTorch is imported, which the commands do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
