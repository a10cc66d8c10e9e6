"""Students of equal size by width alone, by depth alone and by a search over both, none of them trained.

`python benchmarks/budget [minilm|reaction-bert|smollm2]` prints a section of docs/results.md and writes it there. Every
run leaves a record in benchmarks/records, so that an interrupted series goes on where it stopped; `--target` and
`--method` restrict it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("shared", "calibration"))

import datasets
import typer
from contests import CONTESTS
from page import write_section
from rows import contest_lines
from store import ROOT, Store
from ways import WAYS

from wid_hf.budget.halving import SECONDS

PAGE = ROOT / "docs" / "results.md"
HEAD = "# Results\n"
RECORDS = ROOT / "benchmarks" / "records"

T = TypeVar("T")


def main(
    subject: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(CONTESTS)}.")] = None,
    target: Annotated[list[str] | None, typer.Option("--target", help="Only these sizes, as tables name them.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help=f"Only these of {', '.join(WAYS)}.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="That a search may take.")] = SECONDS,
    limit_minutes: Annotated[float | None, typer.Option(min=0, help="Begin no run after this many minutes.")] = None,
    records: Annotated[Path, typer.Option(help="Folder of records.")] = RECORDS,
    output: Annotated[Path, typer.Option(help="Page to write the section to.")] = PAGE,
) -> None:
    """Measure students of several sizes at their starts."""
    store = Store(records) if limit_minutes is None else Store(records, time.monotonic() + 60 * limit_minutes)
    ways = _named(method, WAYS)
    for name, contest in _named(subject, CONTESTS).items():
        targets = [each for each in contest.targets if not target or each in target]
        lines = contest_lines(contest, ways, targets, store, seconds)
        command = f"`python benchmarks/budget {name}`: no training at all; {seconds:.0f} s for a search at most."
        print(write_section(output, HEAD, f"Budgets: {name}", [command, "", *lines]))


def _named(names: list[str] | None, known: Mapping[str, T]) -> dict[str, T]:
    """Return those of `known` that are named, or all."""
    if unknown := set(names or ()) - set(known):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}.")
    return {name: value for name, value in known.items() if not names or name in names}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    typer.run(main)
