"""Run every family of transformers' auto mappings and write docs/coverage.md.

`python benchmarks/architectures` takes minutes; `--task` and `--family` restrict it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
import typer
from check import Verdict, be_quiet, check
from rich.console import Console
from rich.progress import track
from tiny import TASKS, families

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def main(
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only these families.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    output: Annotated[Path, typer.Option(help="Page to write.")] = PAGE,
) -> None:
    """Check families and write the page."""
    jobs = [
        (name, kind, class_name)
        for kind in (task or list(TASKS))
        for name, class_name in families(kind).items()
        if not family or name in family
    ]
    started = time.time()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=be_quiet) as pool:
        waiting = [pool.submit(check, *job) for job in jobs]
        verdicts = [future.result() for future in track(waiting, "Checking", console=Console(stderr=True))]
    output.write_text(page(verdicts), encoding="utf-8")
    for kind in task or list(TASKS):
        print(kind, dict(Counter(v.status for v in verdicts if v.task == kind)))
    print(f"{len(verdicts)} families in {time.time() - started:.0f} s")
    sys.exit(any(verdict.status == "wrong" for verdict in verdicts))


def page(verdicts: list[Verdict]) -> str:
    """Return the page: a summary and one table per task."""
    lines = [
        "# Coverage",
        f"Written by `python benchmarks/architectures` with transformers {transformers.__version__}; do not edit.",
        "Each family's tiny random model went through plan, permutation proof, narrowing, one optimizer step, merge",
        "(difference 0), save and reload by the stock class (difference 0).",
        "",
    ]
    for task in dict.fromkeys(verdict.task for verdict in verdicts):
        rows = [verdict for verdict in verdicts if verdict.task == task]
        counts = Counter(verdict.status for verdict in rows)
        lines += [
            f"## {task}",
            ", ".join(f"{count} {status}" for status, count in counts.most_common()),
            "",
            "| family | result | what shrinks | head strategies | reason |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {v.family} | {v.status} | {', '.join(v.widths)} | {', '.join(v.strategies)} | {_cell(v.reason)} |"
                for v in rows
            ),
            "",
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    typer.run(main)
