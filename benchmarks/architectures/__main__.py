"""Run every family of transformers' auto mappings and write docs/coverage.md.

`python benchmarks/architectures` takes a quarter of an hour on two cores. Results are kept under .cache as they come,
so that an interrupted run goes on where it stopped as long as no code has changed; `--task` and `--family` restrict a
run, which then writes a page only to a file given with `--output`.

With `--fewer` students have fewer layers, and fewer tokens, instead of less width: a section of its own. Their results
are kept in benchmarks/records/coverage. What works is not tried again by later versions of the library, what does not
is; `--anew` tries everything.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import torch
import transformers
import typer
from check import Verdict, be_quiet, check
from fewer import Fewer, check_fewer
from fewer_page import MARK, cell, fewer_lines, is_settled, read_fewer, shares
from page import write_between
from rich.console import Console
from rich.progress import track
from store import library_version
from tiny import TASKS, families

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"
RECORDS = ROOT / "benchmarks" / "records"
STATUSES = ("works", "partly", "refused", "not built", "wrong")

Job = tuple[str, str, str]  # family, task, model class


def main(
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only these families.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Page to write; docs/coverage.md after a full run.")] = None,
    fewer: Annotated[bool, typer.Option("--fewer", help="Fewer layers and tokens instead of less width.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="With --fewer: try again what is recorded as well.")] = False,
) -> None:
    """Check families, print what is not yet well, and write the page."""
    if fewer:
        main_of_fewer(task or list(TASKS), family, workers, output, anew)
        return
    started = time.time()
    verdicts = list(run(task or list(TASKS), family, workers))
    full = not task and not family
    if output or full:
        write_page(output or PAGE, page(verdicts))
    if not full:
        for found in verdicts:
            print(found)
    for kind in task or list(TASKS):
        print(summary(kind, [found for found in verdicts if found.task == kind]))
    print(f"{len(verdicts)} families in {time.time() - started:.0f} s")
    sys.exit(any(found.status == "wrong" for found in verdicts))


def main_of_fewer(tasks: list[str], family: list[str] | None, workers: int, output: Path | None, anew: bool) -> None:
    """Check fewer layers and tokens, print what is not yet well, and write their section of the page."""
    found = run_fewer(tasks, family, workers, anew)
    if output or len(found) == len(jobs_of([*TASKS], None)):
        write_between(output or PAGE, "# Coverage\n", MARK, fewer_lines(found, [*TASKS]))
    for each in found:
        if family or not is_settled(each):
            print(each)
    print("\n".join(shares(found)))
    sys.exit(any(check.status == "wrong" for each in found for check in (each.layers, each.tokens)))


def run_fewer(tasks: list[str], only: list[str] | None, workers: int, anew: bool) -> list[Fewer]:
    """Return what is recorded or found now for each family of each task, in the order of the mappings."""
    store = RECORDS / "coverage" / "fewer.jsonl"
    library = library_version()
    known = {}
    for line in store.read_text(encoding="utf-8").splitlines() if store.exists() else []:
        each, of = read_fewer(line)
        known[each.family, each.task] = each, of
    jobs = jobs_of(tasks, only)
    missing = [
        job
        for job in jobs
        if anew or (job[:2] not in known) or not (is_settled(known[job[:2]][0]) or known[job[:2]][1] == library)
    ]
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as record:
        for each in results(check_fewer, missing, workers):
            known[each.family, each.task] = each, library
            record.write(json.dumps({**asdict(each), "library": library}) + "\n")
            record.flush()
    return [known[job[:2]][0] for job in jobs]


def jobs_of(tasks: list[str], only: list[str] | None) -> list[Job]:
    """Return the families of these tasks, in the order of the mappings."""
    return [
        (name, kind, class_name)
        for kind in tasks
        for name, class_name in families(kind).items()
        if not only or name in only
    ]


def run(tasks: list[str], only: list[str] | None, workers: int) -> Iterator[Verdict]:
    """Yield a verdict for each family of each task, in the order of the mappings; known ones are read back."""
    jobs = jobs_of(tasks, only)
    store = ROOT / ".cache" / "coverage" / f"{_fingerprint()}.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    lines = store.read_text(encoding="utf-8").splitlines() if store.exists() else []
    known = {(found.family, found.task): found for found in map(_read, lines)}
    with store.open("a", encoding="utf-8") as record:
        for found in results(check, [job for job in jobs if job[:2] not in known], workers):
            known[found.family, found.task] = found
            record.write(json.dumps(asdict(found)) + "\n")
            record.flush()
    yield from (known[job[:2]] for job in jobs)


def results(work: Callable[..., Any], jobs: Sequence[Job], workers: int) -> Iterator[Any]:
    """Yield what `work` finds for each job, as it comes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=be_quiet) as pool:
        waiting = as_completed([pool.submit(work, *job) for job in jobs])
        for future in track(waiting, "Checking", total=len(jobs), console=Console(stderr=True)):
            yield future.result()


def summary(task: str, rows: list[Verdict]) -> str:
    """Return a line: how many families can be built, of how many the hidden size shrinks, also by default, and all."""
    counts = Counter(found.status for found in rows)
    built = len(rows) - counts["not built"]
    hidden = sum(found.hidden for found in rows)
    default = sum(bool(found.default) for found in rows)
    shares = [f"{100 * count / built:.0f} %" if built else "none built" for count in (hidden, default)]
    listed = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    shrinks = f"hidden shrinks: {hidden} of {built} built ({shares[0]}), by default: {default} ({shares[1]})"
    return f"{task}: {shrinks}; {listed}"


def _read(line: str) -> Verdict:
    fields = json.loads(line)
    return Verdict(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


def _fingerprint() -> str:
    """Return what names the results of this code: a hash of everything that can change them."""
    code = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in sorted([*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        if file != Path(__file__):
            code.update(file.read_bytes())
    return code.hexdigest()[:16]


def write_page(file: Path, text: str) -> None:
    """Write the page; what stands in it between the marks of fewer layers and tokens stays."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    _, mark, fewer = before.partition(f"<!-- begin {MARK} -->\n")
    file.write_text(text.rstrip("\n") + "\n" + (f"\n{mark}{fewer}" if mark else ""), encoding="utf-8")


def page(verdicts: list[Verdict]) -> str:
    """Return the page: a summary and one table per task."""
    tasks = {task: [v for v in verdicts if v.task == task] for task in dict.fromkeys(v.task for v in verdicts)}
    lines = [
        "# Coverage",
        f"Written by `python benchmarks/architectures` with transformers {transformers.__version__}; do not edit.",
        "Each family's tiny random model went through plan, permutation proof, identity at full size, narrowing by",
        "each head strategy, one optimizer step, merge (difference 0), save and reload by the stock class (difference",
        "0). *Works* means that the hidden size and all inner widths shrink, in composite models those of all parts;",
        "*partly*, that some do; *not built*, that no tiny model could be made or run. *By default* shows the head",
        "strategy that `WidConfig(hidden_size=half)` alone took on the same way; empty where that was refused or came",
        "to another hidden size.",
        "",
        *(f"- {summary(task, rows)}" for task, rows in tasks.items()),
        "",
    ]
    for task, rows in tasks.items():
        lines += [
            f"## {task}",
            "",
            "| family | result | hidden size | by default | what shrinks | head strategies | reason |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {v.family} | {v.status} | {'shrinks' if v.hidden else ''} | {v.default} | {', '.join(v.widths)} "
                f"| {', '.join(v.strategies)} | {cell(v.reason)} |"
                for v in rows
            ),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
