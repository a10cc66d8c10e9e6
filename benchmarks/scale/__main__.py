"""What calibration takes against texts, width and depth.

`python benchmarks/scale calibration` writes its section of docs/calibration_cost.md. Teachers are BERTs and Llamas with
random weights; each calibration runs in a process of its own on one thread. Processor time counts, not wall time, so
other work on the machine does little harm. Every case leaves a record in benchmarks/records/scale, which belongs to the
version of the library that made it; `--beside VERSION` shows that version's rows too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import torch
import typer
from calibrating import measured
from page import made_by, table, write_section
from store import ROOT, Record, Store, library_version
from teachers import Case, Kind

PAGE = ROOT / "docs" / "calibration_cost.md"
RECORDS = ROOT / "benchmarks" / "records" / "scale"
HEAD = """# Scale measured
Written by `python benchmarks/scale`; do not edit.
"""
TITLE = "Calibration"
WORDS = (
    "Teachers have random weights, students are half as wide. *Beyond* is the peak of resident memory beyond the "
    "teacher and the compactors; CPU seconds are those of one thread. Whole heads go instead of half of every head "
    "where *heads* says so."
)
COLUMNS = ("teacher", "texts x tokens", "width", "layers", "library", "beyond, GB", "CPU seconds")
AXES: dict[str, tuple[Case, ...]] = {
    "texts": tuple(Case("bert", 512, 2, texts, 64) for texts in (64, 512, 4096)),
    "width": tuple(
        replace(Case("bert", width, 2, 0, 64), texts=12 * width // 64 * 4, heads=heads)
        for width in (256, 512, 1024, 2048)
        for heads in (False, True)
    ),
    "depth": tuple(Case(kind, 256, layers, 128, 64) for kind in ("bert", "llama") for layers in (4, 12, 24)),
}

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)

Axes = Annotated[list[str] | None, typer.Option("--axis", help=f"Only these of {', '.join(AXES)}.")]
Widest = Annotated[int, typer.Option(min=1, help="Leave out wider teachers.")]
MostTexts = Annotated[int, typer.Option(min=1, help="Leave out cases of more texts.")]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="Only bert or llama.")]
Beside = Annotated[list[str] | None, typer.Option(help="Show rows of this version of the library too.")]
Records = Annotated[Path, typer.Option(help="Folder of records.")]
Output = Annotated[Path, typer.Option(help="Page to write the section to.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin nothing after this many minutes.")]
Anew = Annotated[bool, typer.Option("--anew", help="Measure what is recorded once more.")]


@app.callback()
def main() -> None:
    """Measure what grows with the size of teachers and data."""


@app.command()
def calibration(
    axis: Axes = None,
    widest: Widest = 2048,
    most_texts: MostTexts = 4096,
    kind: Kinds = None,
    beside: Beside = None,
    records: Records = RECORDS,
    output: Output = PAGE,
    limit_minutes: Minutes = None,
    anew: Anew = False,
) -> None:
    """Measure peak memory and CPU time of calibrations against texts, width and depth."""
    torch.set_num_threads(1)
    if unknown := set(axis or ()) - set(AXES):
        raise typer.BadParameter(f"--axis {', '.join(sorted(unknown))} is none of {', '.join(AXES)}.")
    kinds: set[Kind] = {"bert", "llama"}
    if unknown := set(kind or ()) - kinds:
        raise typer.BadParameter(f"--kind {', '.join(sorted(unknown))} is none of bert, llama.")
    store = Store(records, inf if limit_minutes is None else time.monotonic() + 60 * limit_minutes, anew)
    library = library_version()
    for name in axis or AXES:
        for case in AXES[name]:
            if case.width <= widest and case.texts <= most_texts and case.kind in (kind or kinds):
                settings = {"what": "calibration", "axis": name, "library": library, **asdict(case)}
                store.get(settings, lambda case=case: measured(case))
    found = [each for each in store.records("calibration") if each["settings"]["library"] in {library, *(beside or ())}]
    if not found:
        print("Nothing is measured yet.")
        return
    print(write_section(output, HEAD, TITLE, ["", f"{WORDS} {made_by(found)}", *_tables(found)]))


def _tables(records: Sequence[Record]) -> list[str]:
    """Return a table for each axis."""
    lines: list[str] = []
    for name in AXES:
        own = [record for record in records if record["settings"]["axis"] == name]
        if own:
            lines += ["", f"### Against {name}", *table(COLUMNS, map(_row, sorted(own, key=_place)))]
    return lines


def _place(record: Record) -> tuple[str, bool, int, int, int, str]:
    asked = record["settings"]
    return asked["kind"], asked["heads"], asked["width"], asked["layers"], asked["texts"], record["commit"]


def _row(record: Record) -> list[str]:
    asked = record["settings"]
    name = asked["kind"] + (", heads" if asked["heads"] else "") + (", bf16" if asked["dtype"] == "bf16" else "")
    sizes = [f"{asked['texts']:,} x {asked['length']}", str(asked["width"]), str(asked["layers"]), asked["library"]]
    if "failed" in record:
        return [name, *sizes, record["failed"], ""]
    return [name, *sizes, f"{record['beyond']:.2f}", f"{record['cpu_seconds']:,.0f}"]


if __name__ == "__main__":
    app()
