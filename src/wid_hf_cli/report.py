"""`wid-hf report`: one page about many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that holds outputs of compress and eval, also in subfolders.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for report.html and its pictures; by default report/ in FOLDER.")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="File or dataset of texts; loads teachers and students, and compares their attention."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of --attention that holds the text.")] = None,
    attention_texts: Annotated[int, typer.Option(min=1, help="How many of them, the first.")] = 64,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Write a self-contained HTML page: sizes, latency, losses, quality against size, baselines, commands."""
    from wid_hf.tools.reports.html_report import AttentionTexts, write_html_report

    texts = None
    if attention is not None:
        texts = AttentionTexts(attention, column, attention_texts, trust_remote_code=trust_remote_code)
    page = write_html_report(folder, output, attention=texts)
    Console().print(f"The report is {page}: open it in a browser.", soft_wrap=True, markup=False)
