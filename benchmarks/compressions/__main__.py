"""Real students from the command line: what one `wid-hf compress` makes of real teachers and data.

`python benchmarks/compressions [CASE ...]` writes rows and students below .cache/compressions, and one section for each
case into docs/results.md. Every student leaves a record in benchmarks/records, and so do its further figures. A case
that was stopped or killed goes on where it was. It needs `make benchmark-teachers`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import datasets
import typer
from case import CACHE, Case
from cases import CASES
from page import made_by, table, write_section
from program import run
from store import ROOT, Record, Store

from wid_hf.hub.model_size import ModelSize, size_rows
from wid_hf.hub.own_files import FILE_NAME
from wid_hf.tools.output_folder import WORK

PAGE = ROOT / "docs" / "results.md"
RECORDS = ROOT / "benchmarks" / "records"
HEAD = "# Results\n"
MODELS = ("teacher", "start", "student")
KEPT = ("method", "objective", "settled", "sizes", "scores", "steps", "tokens", "numbers", "seconds", "latency", "rows")


def main(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(CASES)}.")] = None,
    limit_minutes: Annotated[float | None, typer.Option(min=0, help="Begin no case after this many minutes.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of rows and students.")] = CACHE,
    records: Annotated[Path, typer.Option(help="Folder of records.")] = RECORDS,
    output: Annotated[Path, typer.Option(help="Page to write sections to.")] = PAGE,
) -> None:
    """Make students by one command each, and write what came of them."""
    if unknown := set(cases or ()) - set(CASES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(CASES)}.")
    store = Store(records, inf if limit_minutes is None else time.monotonic() + 60 * limit_minutes)
    for name, case in CASES.items():
        if not cases or name in cases:
            measure(case, store, cache.absolute(), output)


def measure(case: Case, store: Store, cache: Path, page: Path) -> None:
    """Make one student unless it is recorded, look at it, and write its section; nothing without time for it."""
    settings = {"what": "compressions", "case": case.name, "command": case.shown()}
    student = store.get(settings, lambda: _compressed(case, cache))
    if student is None:
        return
    looked = None
    if case.further is not None:
        looked = store.get(settings | {"further": True}, lambda: _looked_at(case, cache))
    print(write_section(page, HEAD, f"Compressed by one command: {case.name}", _lines(case, student, looked)))


def _compressed(case: Case, cache: Path) -> Record:
    """Return what the report of the student says, made by the command line."""
    case.make(cache)
    student = case.student(cache)
    student.parent.mkdir(parents=True, exist_ok=True)
    resumed = student.with_name(student.name + WORK).exists()
    # A student that is there has no record: it is of other words or another time.
    more = [*(["--resume"] if resumed else []), *(["--overwrite"] if student.exists() else [])]
    run([*case.command(cache), *more], student.with_name("log.txt"))
    report = json.loads((student / FILE_NAME).read_text(encoding="utf-8"))
    return {"resumed": resumed, "report": {key: report[key] for key in KEPT}}


def _looked_at(case: Case, cache: Path) -> Record:
    """Return the further figures of a student that is there."""
    assert case.further is not None
    return {"figures": case.further(case.teacher(cache), case.student(cache))}


def _lines(case: Case, student: Record, looked: Record | None) -> Iterator[str]:
    report = student["report"]
    yield f"`python benchmarks/compressions {case.name}` writes what is read, and then calls"
    yield ""
    yield f"`{student['settings']['command']}`"  # no block: those of the pages are run by a test
    yield ""
    if case.told:
        yield case.told
    yield from table(["", *MODELS], _rows(report))
    whole = "" if student["resumed"] else f", {student['seconds']:.0f} with its start and all scores"
    yield (
        f"{report['steps']} steps on {report['tokens']:,} {report['numbers']} took {report['seconds']:.0f} "
        f"seconds{whole}. {made_by([student])}"
    )
    if looked is not None:
        yield ""
        yield "Looked at afterwards, in the folders of both:"
        figures = looked["figures"]
        models = [name for name in MODELS if any(name in figure for figure in figures.values())]
        yield from table(
            ["", *models],
            ([name, *(_cell(figure.get(model, "")) for model in models)] for name, figure in figures.items()),
        )


def _rows(report: dict[str, Any]) -> Iterator[list[str]]:
    """Yield sizes, seconds of a forward, and all scores."""
    sizes = {name: ModelSize(**size) for name, size in report["sizes"].items()}
    yield from map(list, size_rows(sizes, list(MODELS)))
    if (latency := report["latency"]) is not None:
        yield [
            f"ms for {' x '.join(map(str, latency['batch']))} {report['numbers']}",
            *(f"{1000 * latency['seconds'][name]:.1f}" if name in latency["seconds"] else "" for name in MODELS),
        ]
    for figure in report["scores"]["teacher"]:
        yield [
            figure.replace("_", " "),
            *(_cell(report["scores"].get(name, {}).get(figure, "")) for name in MODELS),
        ]


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


if __name__ == "__main__":
    datasets.disable_progress_bars()
    typer.run(main)
