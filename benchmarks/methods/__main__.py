"""What WID is worth beside other methods: students of one shape and budget, each at the best of four learning rates.

`python benchmarks/methods sweep` tries the learning rates with few steps, `compare` trains with the best of them and
scores on tasks, `sizes` draws quality against size, and `results` writes docs/results.md from what is recorded, as the
others do in the end. Every run leaves a record in benchmarks/records, so that an interrupted series goes on where it
stopped; `--records` names another folder to measure anew.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("shared", "baselines"))

import datasets
import typer
from contests import CONTESTS, SWEPT_WIDTH, Contest, Rates
from methods import METHODS, Method
from results import best_rates, write_results
from store import ROOT, Record, Store
from students import Budget, Run, Tuning, teacher, trained, tuned

RECORDS = ROOT / "benchmarks" / "records"
PAGES = ROOT / "docs"

Teachers = Annotated[list[str] | None, typer.Option("--teacher", help=f"Only these of {', '.join(CONTESTS)}.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help=f"Only these of {', '.join(METHODS)}.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no run after this many minutes.")]
Steps = Annotated[int, typer.Option(min=50, help="Optimizer steps of each student.")]
SweepSteps = Annotated[int, typer.Option(min=50, help="Optimizer steps of each run of the sweep.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Records = Annotated[Path, typer.Option(help="Folder of records.")]
Output = Annotated[Path, typer.Option(help="Folder to write results.md and its pictures to.")]

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)


@app.command()
def sweep(
    teacher_name: Teachers = None,
    method: Methods = None,
    sweep_steps: SweepSteps = 60,
    batch_size: BatchSize = 8,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGES,
) -> None:
    """Train every method at half width with four learning rates each, one seed, few steps."""
    store = _store(records, limit_minutes)
    for contest in _contests(teacher_name):
        for each in _methods(contest, method):
            _swept(contest, each, Budget(sweep_steps, batch_size), store)
    results(records, output)


@app.command()
def compare(
    teacher_name: Teachers = None,
    method: Methods = None,
    width: Annotated[list[str] | None, typer.Option(help="Only students of these widths.")] = None,
    steps: Steps = 300,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    batch_size: BatchSize = 8,
    sweep_steps: SweepSteps = 60,
    tuning_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of fine-tuning on a task.")] = 300,
    tuning_batch_size: Annotated[int, typer.Option(min=1, help="Rows per step of fine-tuning.")] = 32,
    tuning_rate: Annotated[list[float] | None, typer.Option(help="Learning rates of fine-tuning; 3e-4, 1e-3.")] = None,
    tuning_examples: Annotated[int | None, typer.Option(help="Most rows of a task to train on.")] = None,
    eval_examples: Annotated[int | None, typer.Option(help="Most rows of a split to score.")] = None,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGES,
) -> None:
    """Train every method at two widths and each seed with the best learning rates of the sweep, and score on tasks."""
    store = _store(records, limit_minutes)
    tuning = Tuning(tuple(tuning_rate or (3e-4, 1e-3)), tuning_steps, tuning_batch_size, tuning_examples, eval_examples)
    for contest in _contests(teacher_name):
        rates = _rates(contest, method, Budget(sweep_steps, batch_size), store)
        runs = [  # first all with one seed, so that what a short time allows can be compared
            Run(contest, of_width, name, best, Budget(steps, batch_size), seed)
            for seed in range(seeds)
            for of_width in contest.compared
            if not width or of_width in width
            for name, best in rates.items()
        ]
        there = [run for run in runs if trained(run, store) is not None]
        for seed in range(seeds):
            teacher(contest, tuning, seed, store)
            for run in there:
                if run.seed == seed:
                    tuned(run, tuning, store)
    results(records, output)


@app.command()
def sizes(
    teacher_name: Teachers = None,
    method: Methods = None,
    steps: Steps = 300,
    batch_size: BatchSize = 8,
    sweep_steps: SweepSteps = 60,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGES,
) -> None:
    """Train students of five sizes, by the method wid unless others are named, one seed."""
    store = _store(records, limit_minutes)
    for contest in _contests(teacher_name):
        rates = _rates(contest, method or ["wid"], Budget(sweep_steps, batch_size), store)
        for of_width in contest.sizes:
            for name, best in rates.items():
                trained(Run(contest, of_width, name, best, Budget(steps, batch_size), 0), store)
    results(records, output)


@app.command()
def results(records: Records = RECORDS, output: Output = PAGES) -> None:
    """Write results.md from what is recorded; run nothing."""
    print(write_results(CONTESTS, Store(records).records("methods"), output))


def _contests(names: list[str] | None) -> list[Contest]:
    if unknown := set(names or ()) - set(CONTESTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(CONTESTS)}.")
    return [CONTESTS[name] for name in names or CONTESTS]


def _methods(contest: Contest, names: list[str] | None) -> list[Method]:
    if unknown := set(names or ()) - set(METHODS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(METHODS)}.")
    return [method for method in contest.methods if not names or method.name in names]


def _store(folder: Path, minutes: float | None) -> Store:
    return Store(folder) if minutes is None else Store(folder, time.monotonic() + 60 * minutes)


def _rates(contest: Contest, names: list[str] | None, budget: Budget, store: Store) -> dict[str, Rates]:
    """Return the best learning rates of each method whose sweep is finished and did not diverge everywhere."""
    best = {}
    for method in _methods(contest, names):
        found = _swept(contest, method, budget, store)
        rates = best_rates(contest, found) if len(found) == len(contest.grid(method)) else None
        if rates is not None:
            best[method.name] = rates
    return best


def _swept(contest: Contest, method: Method, budget: Budget, store: Store) -> list[tuple[Rates, Record]]:
    """Return the runs of a method's grid that are finished."""
    grid = contest.grid(method)
    runs = [(rates, trained(Run(contest, SWEPT_WIDTH, method.name, rates, budget, 0), store)) for rates in grid]
    return [(rates, record) for rates, record in runs if record is not None]


if __name__ == "__main__":
    datasets.disable_progress_bars()
    app()
