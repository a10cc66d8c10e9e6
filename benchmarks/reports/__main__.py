"""Try what users of other tools reported, and say of each what comes of it here.

`python benchmarks/reports` tries every case in a process of its own, without a network and on models made on the spot,
and writes the outcomes as a section of docs/compatibility.md. Each leaves a record in benchmarks/records/reports, so
that an interrupted series goes on where it stopped; a case that went wrong or was changed is tried again, with `--anew`
all are. `--case NAME` tries some and writes nothing. Exit status 1 if any outcome is another than the right one.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import typer
from case import CASES, REFUSED, RIGHT, WRONG, Case, outcome
from kinds import KINDS
from page import made_by, table, write_between
from store import ROOT, Record, Store

PAGE = ROOT / "docs" / "compatibility.md"
RECORDS = ROOT / "benchmarks" / "records"
WHAT = "reports"
HEAD = "# Compatibility\n"
INTRODUCTION = (
    "What users of other tools reported, tried on wid-hf by `python benchmarks/reports`; do not edit this section. "
    "Every case is a small model made on the spot, in a process of its own, without a network. *right*: the value "
    "that the case asserts; *refused*: an error that names the thing and the way out, shown by its "
    "first sentence. Each case states which of the two it expects, and the command fails where another comes of it."
)


def main(
    case: Annotated[list[str] | None, typer.Option(help="Try only these, and write nothing.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Try all once more.")] = False,
    records: Annotated[Path, typer.Option(help="Folder of records.")] = RECORDS,
    output: Annotated[Path, typer.Option(help="Page to write the section into.")] = PAGE,
) -> None:
    """Try cases, print what came of them, and write the section."""
    if unknown := set(case or ()) - set(CASES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(CASES)}.")
    if case:
        found = {name: _told(name, outcome(name)) for name in case}
    else:
        store = Store(records, anew=True)
        found = {name: _told(name, (None if anew else known(store, name)) or tried(store, name)) for name in CASES}
        write_between(output, HEAD, WHAT, section(found))
    print(totals(found))
    sys.exit(any(is_wrong(name, record) for name, record in found.items()))


def known(store: Store, name: str) -> Record | None:
    """Return the record of a case that is as it was then, and was not wrong."""
    record = recorded(store).get(name)
    return None if record is None or record["source"] != CASES[name].source or is_wrong(name, record) else record


def recorded(store: Store) -> dict[str, Record]:
    """Return the records of cases that there are, by name, in the order of the cases."""
    records = {record["settings"]["case"]: record for record in store.records(WHAT)}
    return {name: records[name] for name in CASES if name in records}


def tried(store: Store, name: str) -> Record:
    """Try a case and record what came of it."""
    record = store.get({"what": WHAT, "case": name}, lambda: outcome(name))
    assert record is not None  # the store has no deadline
    return record


def is_wrong(name: str, record: Record) -> bool:
    """Return whether a case had another outcome than the right one."""
    return record["outcome"] != CASES[name].expected


def section(found: Mapping[str, Record]) -> list[str]:
    """Return the lines of the page: what was tried by whom with which outcome, by kind."""
    lines = ["## Reports of other tools' users", INTRODUCTION, "", f"{totals(found)} {made_by(found.values())}"]
    rows = [_row(CASES[name], found[name]) for kind in KINDS for name in found if CASES[name].kind == kind]
    return [*lines, *table(["kind", "report(s)", "what was tried", "outcome", "seconds"], rows)]


def totals(found: Mapping[str, Record]) -> str:
    """Return how many cases had which outcome, in a sentence."""
    counts = Counter(WRONG if is_wrong(name, record) else record["outcome"] for name, record in found.items())
    return f"{len(found)} cases: " + ", ".join(f"{counts[each]} {each}" for each in (RIGHT, REFUSED, WRONG)) + "."


def first_sentence(text: str) -> str:
    """Return the first sentence of a message in one line."""
    words = " ".join(text.split())
    end = re.search(r"[.!?](?= |$)", words)
    return words[: end.end()] if end else words


def _row(case: Case, record: Record) -> list[str]:
    told = f": {first_sentence(record['told'])}" if record["told"] else ""
    cells = [case.kind, ", ".join(case.reports), case.tried, record["outcome"] + told, f"{record['seconds']:.1f}"]
    return [cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells]


def _told(name: str, record: Record) -> Record:
    """Print what came of a case."""
    verdict = WRONG if is_wrong(name, record) else record["outcome"]
    told = f": {record['told']}" if verdict == WRONG else ""
    print(f"{verdict:8}{name} ({record['seconds']:.1f} s){told}", flush=True)
    return record


if __name__ == "__main__":
    typer.run(main)
