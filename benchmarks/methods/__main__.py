"""What WID is worth beside other methods: students of one shape and budget, each at the best of four learning rates.

`python benchmarks/methods sweep` tries the learning rates with few steps, `python benchmarks/methods compare` trains
with the best of them and scores on tasks. Each writes a section of docs/methods.md. Every run leaves a record in
.cache/results, so that an interrupted series goes on where it stopped; delete the folder to measure anew.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import datasets
import typer
from contests import CONTESTS, Contest, Rates
from page import made_by, table, write_section
from store import ROOT, Record, Store
from students import Budget, Tuning, fine_tuned, scored, teacher, trained

from wid_hf.methods import METHODS, Method

PAGE = ROOT / "docs" / "methods.md"
HEAD = "# Methods\n"  # of another page than that one
RESULTS = ROOT / ".cache" / "results"
SWEPT_WIDTH = "1/2"

Teachers = Annotated[list[str] | None, typer.Option("--teacher", help=f"Only these of {', '.join(CONTESTS)}.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help=f"Only these of {', '.join(METHODS)}.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no run after this many minutes.")]
SweepSteps = Annotated[int, typer.Option(min=50, help="Optimizer steps of each run of the sweep.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Output = Annotated[Path, typer.Option(help="Page to write the section to.")]

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)


@app.command()
def sweep(
    teacher_name: Teachers = None, method: Methods = None, sweep_steps: SweepSteps = 100, batch_size: BatchSize = 16,
    limit_minutes: Minutes = None, output: Output = PAGE,
) -> None:  # fmt: skip
    """Train every method at half width with four learning rates each, one seed, few steps."""
    store = _store(limit_minutes)
    for contest in _contests(teacher_name):
        budget, rows, runs = Budget(sweep_steps, batch_size), [], []
        for each in _methods(contest, method):
            found = _swept(contest, each, budget, store)
            best = _best(contest, each, found)
            runs += [record for _, record in found]
            rows += [
                [each.name, _told(rates), *_figures(contest, [record]), "best" if rates == best else ""]
                for rates, record in found
            ]
        words = [f"--sweep-steps {sweep_steps}", f"--batch-size {batch_size}"]
        told = f"`python benchmarks/methods sweep --teacher {contest.name} {' '.join(words)}`: width {SWEPT_WIDTH}."
        lines = [told, "", _conditions(contest, budget, runs)]
        lines += table(["method", "learning rates", *contest.figures, ""], rows) if rows else []
        print(write_section(output, HEAD, f"Learning rates of all methods: {contest.name}", lines))


@app.command()
def compare(
    teacher_name: Teachers = None, method: Methods = None,
    width: Annotated[list[str] | None, typer.Option(help="Only students of these widths.")] = None,
    steps: Annotated[int, typer.Option(min=50, help="Optimizer steps of each student.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    batch_size: BatchSize = 16, sweep_steps: SweepSteps = 100,
    tuning_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of fine-tuning on a task.")] = 300,
    tuning_rate: Annotated[list[float] | None, typer.Option(help="Learning rates of fine-tuning; 3e-4, 1e-3.")] = None,
    tuning_examples: Annotated[int | None, typer.Option(help="Most rows of a task to train on.")] = None,
    eval_examples: Annotated[int | None, typer.Option(help="Most rows of a split to score.")] = None,
    limit_minutes: Minutes = None, output: Output = PAGE,
) -> None:  # fmt: skip
    """Train every method at each width and seed with the best learning rates of the sweep, and score on tasks."""
    store = _store(limit_minutes)
    tuning = Tuning(tuple(tuning_rate or (3e-4, 1e-3)), tuning_steps, tuning_examples, eval_examples)
    budget = Budget(steps, batch_size)
    for contest in _contests(teacher_name):
        chosen = _methods(contest, method)
        rates = {each.name: _best(contest, each, _swept(contest, each, Budget(sweep_steps, batch_size), store))
                 for each in chosen}  # fmt: skip
        widths = [name for name in contest.sizes if not width or name in width]
        found: dict[tuple[str, str], list[Record]] = {(w, each.name): [] for w in widths for each in chosen}
        teachers: list[Record] = []
        for seed in range(seeds):  # first all with one seed, so that what a short time allows can be compared
            whole = teacher(contest, tuning, seed, store)
            teachers += [whole] if whole is not None else []
            for (of_width, name), records in found.items():
                best = rates[name]
                record = scored(contest, of_width, name, best, budget, tuning, seed, store) if best else None
                if record is not None:
                    records.append(record)
        runs = [record for records in found.values() for record in records]
        missing = len(found) * seeds - len(runs)
        rows = [["", "teacher", "", str(len(teachers)), *["" for _ in contest.figures], *_of_tasks(contest, teachers),
                 "", ""]] if teachers else []  # fmt: skip
        rows += [
            [
                of_width, METHODS[name].title, _told(rates[name]), str(len(records)), *_figures(contest, records),
                *_of_tasks(contest, records), _tokens(records), _seconds(records),
            ]
            for (of_width, name), records in found.items()
            if records
        ]  # fmt: skip
        words = [
            f"--steps {steps}", f"--seeds {seeds}", f"--batch-size {batch_size}", f"--sweep-steps {sweep_steps}",
            f"--tuning-steps {tuning_steps}",
            *(f"--tuning-rate {rate:g}" for rate in tuning_rate or ()),
            *(f"--tuning-examples {tuning_examples}" for _ in range(tuning_examples is not None)),
            *(f"--eval-examples {eval_examples}" for _ in range(eval_examples is not None)),
        ]  # fmt: skip
        tuned = (
            f" Tasks: fine-tuned for {tuning_steps} steps of 32 at the better of "
            f"{', '.join(f'{rate:g}' for rate in tuning.learning_rates)} on the split dev."
            if fine_tuned(contest)
            else ""
        )
        lines = [
            f"`python benchmarks/methods compare --teacher {contest.name} {' '.join(words)}`: before → after "
            "± standard deviation over seeds.",
            "",
            _conditions(contest, budget, runs) + tuned + (f" {missing} runs are missing." if missing else ""),
        ]
        shown = [f"{task} ({split}, {figure})" for task, (split, figure) in contest.tasks.items()]
        head = ["width", "method", "learning rates", "seeds", *contest.figures, *shown, "tokens", "seconds"]
        lines += table(head, rows) if rows else []
        print(write_section(output, HEAD, f"All methods: {contest.name}", lines))


def _contests(names: list[str] | None) -> list[Contest]:
    if unknown := set(names or ()) - set(CONTESTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(CONTESTS)}.")
    return [CONTESTS[name] for name in names or CONTESTS]


def _methods(contest: Contest, names: list[str] | None) -> list[Method]:
    if unknown := set(names or ()) - set(METHODS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(METHODS)}.")
    return [method for method in contest.methods if not names or method.name in names]


def _store(minutes: float | None) -> Store:
    return Store(RESULTS) if minutes is None else Store(RESULTS, time.monotonic() + 60 * minutes)


def _swept(contest: Contest, method: Method, budget: Budget, store: Store) -> list[tuple[Rates, Record]]:
    """Return the runs of a method's grid that are finished."""
    grid = contest.grid(method)
    runs = [(rates, trained(contest, SWEPT_WIDTH, method.name, rates, budget, 0, store)) for rates in grid]
    return [(rates, record) for rates, record in runs if record is not None]


def _best(contest: Contest, method: Method, found: Sequence[tuple[Rates, Record]]) -> Rates | None:
    """Return the learning rates with the best first figure; None if a run is not finished, or all diverged."""
    if len(found) < len(contest.grid(method)):
        return None
    figure = next(iter(contest.figures))

    def badness(run: tuple[Rates, Record]) -> float:
        scores = run[1].get("scores")
        return inf if scores is None else scores["student"][figure] * (-1 if contest.larger else 1)

    best = min(found, key=badness)
    return None if badness(best) == inf else best[0]


def _figures(contest: Contest, records: Sequence[Record]) -> list[str]:
    """Return `start -> student ± standard deviation` for each figure; `diverged` where no run has any."""
    whole = [record["scores"] for record in records if "scores" in record]
    if not whole:
        return ["diverged" for _ in contest.figures]
    return [
        f"{format(mean(scores['start'][name] for scores in whole), style)} → "
        + _spread([scores["student"][name] for scores in whole], style)
        for name, style in contest.figures.items()
    ]


def _of_tasks(contest: Contest, records: Sequence[Record]) -> list[str]:
    whole = [record["tasks"] for record in records if "tasks" in record]
    if not whole:
        return ["" for _ in contest.tasks]
    return [
        _spread([tasks[task]["splits"][split][figure] for tasks in whole], ".2%")
        for task, (split, figure) in contest.tasks.items()
    ]


def _spread(values: Sequence[float], style: str) -> str:
    return format(mean(values), style) + (f" ± {format(stdev(values), style)}" if len(values) > 1 else "")


def _tokens(records: Sequence[Record]) -> str:
    return ", ".join(f"{count:,}" for count in sorted({r["tokens"] for r in records if "tokens" in r}))


def _seconds(records: Sequence[Record]) -> str:
    seconds = [record["training_seconds"] for record in records if "training_seconds" in record]
    return f"{mean(seconds):.0f}" if seconds else ""


def _told(rates: Rates | None) -> str:
    return " / ".join(f"{rate:g}" for rate in (rates or {}).values())


def _conditions(contest: Contest, budget: Budget, runs: Iterable[Record]) -> str:
    runs = list(runs)
    if not runs:
        return f"{contest.name}: no run is finished yet."
    return (
        f"**{contest.name}**, {budget.steps} steps of {budget.batch_size} texts of at most {contest.max_length} "
        f"tokens, scored on {contest.validation_texts} others. Learning rates: compactors / teacher's weights, or the "
        f"student's. {made_by(runs)}" + (f" {contest.note}" if contest.note else "")
    )


if __name__ == "__main__":
    datasets.disable_progress_bars()
    app()
