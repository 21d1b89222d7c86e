"""What a command says: its result to standard output, all else to standard error."""

import json
from dataclasses import fields
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from nexus_integrations.extras import extra

_errors = Console(stderr=True, highlight=False)
# What the package raises, with a message for the user.
_EXPLAINED = (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError)


class Output:
    """Where a command's words go; with `as_json` the result is one JSON object, and all it says."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def tell(self, line: str) -> None:
        """Tell the user about a step; programs that asked for JSON are spared."""
        if not self.as_json:
            _errors.print(line, style="dim", markup=False, soft_wrap=True)

    def result(self, result: Any, *lines: str, **more: Any) -> None:
        """Print a result: as JSON with `more` in it, or as it prints itself, then the lines.

        A result is a dataclass, or None where `lines` and `more` are all that there is.
        """
        if self.as_json:
            content = {**_content(result), **more}
            typer.echo(json.dumps(content, ensure_ascii=False, indent=1, default=str))
            return
        for line in (*(() if result is None else (str(result),)), *lines):
            if line:
                typer.echo(line)


class ReportingGroup(TyperGroup):
    """Commands whose errors are one line and exit status 1, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with extra("train"):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # which are RuntimeErrors
            raise
        except _EXPLAINED as error:
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            _errors.print(f"[bold red]error:[/bold red] {escape(str(message))}", soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _errors.print("stopped")
            raise typer.Exit(1) from None


def _content(result: Any) -> dict[str, Any]:
    from nexus_integrations.records import plain

    if result is None:
        return {}
    if hasattr(result, "to_json"):
        content: dict[str, Any] = result.to_json()
        return content
    # A field without a repr is too large to print, or is no number.
    return {f.name: plain(getattr(result, f.name)) for f in fields(result) if f.repr}
