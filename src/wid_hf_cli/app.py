"""All commands as one program, and how refusals and warnings are shown."""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache
from typing import Any, TextIO

import typer
from rich.console import Console

from . import options
from .compress import compress
from .evaluate import evaluate
from .export import export
from .plan import plan
from .report import report

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


# Arguments of the library whose option has another name.
OTHERWISE = {"folder": "--data", "overrides": "--override"}
VALUE = r"""True|"[^"]*"|'[^']*'|\[[^\]]*\]|[\w+-]+(?:[.,][\w+-]+)*"""


def run() -> None:
    """Run the command line; an error of wid_hf is printed without a traceback, and the exit status is 1."""
    warnings.showwarning = _show_warning
    try:
        app()
    except _of_library("WidError") as refusal:
        _print(type(refusal).__name__, "bold red", str(refusal))
        sys.exit(1)


def as_options(text: str) -> str:
    """Return a message of the library with its arguments, `name=value`, as the options of the command line."""
    return re.sub(rf"(?<![\w?&./-])([a-z_]+)=({VALUE})?", _as_option, text)


def _as_option(found: re.Match[str]) -> str:
    option, value = _options().get(found[1]), (found[2] or "").strip("\"'")
    if option is None:
        return found[0]
    if value.startswith("["):  # a list of words has commas between them on the command line
        value = re.sub(r"[\[\]\s\"']", "", value)
    return option if value in ("", "True") else f"{option} {value}"


@cache
def _options() -> dict[str, str]:
    """Return the options of all commands by the name of the argument in Python; a name means the same everywhere."""
    commands: Any = typer.main.get_command(app)
    spelled = (name for command in commands.commands.values() for each in command.params for name in each.opts)
    return {name[2:].replace("-", "_"): name for name in spelled if name.startswith("--")} | OTHERWISE


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
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _print(kind: str, style: str, text: str) -> None:
    Console(stderr=True, highlight=False).print(f"[{style}]{kind}[/]:", end=" ")
    Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(as_options(text))
