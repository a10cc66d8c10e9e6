"""The `wid-hf` program."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from ..errors import WidError
from .compress import compress
from .evaluate import evaluate
from .export import export
from .plan import plan
from .report import report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold tokens
    help="Make a pretrained transformer narrower and get a stock model back.",
)
app.command()(plan)
app.command()(compress)
app.command()(export)
app.command("eval")(evaluate)
app.command()(report)


def main() -> None:
    """Run the command line; what wid_hf refuses is printed without a traceback and exits with 1."""
    try:
        app()
    except WidError as refusal:
        Console(stderr=True, highlight=False).print(f"[bold red]{type(refusal).__name__}[/]:", end=" ")
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(str(refusal))
        sys.exit(1)
