"""`wid-hf export`: a student for programs that are not Python."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options


class Format(str, Enum):
    """The words of `--format`."""

    onnx = "onnx"


def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a student, or of any stock model.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.onnx,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Write a model as an ONNX file, and check it against onnxruntime."""
    from wid_hf.tools.export import export_onnx

    console = Console(highlight=False, soft_wrap=True, markup=False)
    with console.status("Exporting"):
        done = export_onnx(model, output, revision=revision, trust_remote_code=trust_remote_code, overwrite=overwrite)
    for name, shape in done.inputs.items():
        console.print(f"{name}: {' x '.join(map(str, shape))}", markup=False)
    console.print(f"gives {', '.join(done.outputs)}")
    console.print(
        f"{output} holds {done.bytes:,} bytes. onnxruntime's outputs are within {done.difference:.1g} of the model's, "
        "on other batch sizes and lengths than it was exported with."
    )
