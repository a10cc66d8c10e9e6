"""One check of the library on the GPU, or on the CPU where there is none; called by `python benchmarks/gpu.py`.

`python benchmarks/on_device llama --output FILE` writes a record: whether the check held, what it found, and what was
raised where it did not. `--tiny` takes sizes that a CPU has done in seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path += [str(Path(__file__).parents[1] / name) for name in ("shared", "speed")]

import typer
from checks import CHECKS
from store import library_version

from wid_hf.atomic_write import atomic_write
from wid_hf.tools.reports.wid_report import hardware_name, package_versions


def main(
    check: Annotated[str, typer.Argument(help=f"One of {', '.join(CHECKS)}.")],
    output: Annotated[Path, typer.Option(help="File of the record.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="Take sizes for a CPU.")] = False,
) -> None:
    """Make a check, write its record, and end with 1 if it did not hold."""
    if check not in CHECKS:
        raise typer.BadParameter(f"{check} is none of {', '.join(CHECKS)}.")
    began = time.monotonic()
    try:
        found = {"held": True, **CHECKS[check](tiny)}
    except Exception:
        found = {"held": False, "raised": traceback.format_exc()}
    record = {
        "settings": {"what": "on-device", "check": check, "tiny": tiny},
        "seconds": time.monotonic() - began,
        "commit": library_version(),
        "hardware": hardware_name(),
        "versions": package_versions(),
        **found,
    }
    with atomic_write(output) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if not found["held"]:
        print(found["raised"], file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
