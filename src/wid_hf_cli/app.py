"""All commands as one program, and how refusals and warnings are shown."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

import typer
from rich.console import Console

from . import options
from .compress import compress
from .evaluate import evaluate
from .export import export
from .plan import plan
from .report import report
from .words import as_options

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold tokens
    help="Make a pretrained transformer narrower and get a stock model back.",
)
app.command()(plan)
app.command()(compress)
app.command()(export)
app.command("eval")(evaluate)
app.command()(report)

OF_PEFT = "`is_gradient_checkpointing` is deprecated"  # it asks transformers for that; no user can change it


def run() -> None:
    """Run the command line; an error of wid_hf is printed without a traceback, and the exit status is 1."""
    warnings.showwarning = _show_warning
    try:
        app()
    except _of_library("WidError") as refusal:
        _print(type(refusal).__name__, "bold red", str(refusal))
        sys.exit(1)


def _of_library(name: str) -> tuple[type[Exception], ...]:
    """Return a class of `wid_hf.errors`; none if no command has loaded the library, which then cannot have raised."""
    errors = sys.modules.get("wid_hf.errors")
    return () if errors is None else (getattr(errors, name),)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if isinstance(message, _of_library("WidWarning")):
        if options.leads():
            _print("Note", "bold yellow", str(message))
    elif not str(message).startswith(OF_PEFT):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _print(kind: str, style: str, text: str) -> None:
    Console(stderr=True, highlight=False).print(f"[{style}]{kind}[/]:", end=" ")
    Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(
        as_options(text, typer.main.get_command(app))
    )
