"""Runs that differ only in their seed, and what they reach on average.

Takes runs and evaluations; gives `Recipe`s, with mean and spread of every figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from ....scores.figures import LOWER_IS_BETTER
from ..eval_report import EvalReport
from .found import Found, Run

DISTINGUISHING = ("teacher", "method", "requested", "head_strategy", "start", "objective", "schedule")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over n - 1 of several values; one value has no deviation, which is None."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return that of the values that are there, None if there is none."""
        there = [value for value in values if value is not None]
        return cls(mean(there), stdev(there) if len(there) > 1 else None) if there else None


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in their seed.

    Attributes:
        label: method and requested sizes, or the first run's name if another recipe has the same.
        series: the method, with the start if recipes of that method have several; one curve per series.
        runs: at least one, in the order of seeds.
        figures: of each run, figures of its student by name: the run's own and those of its evaluations.
    """

    label: str
    series: str
    runs: list[Run]
    figures: list[dict[str, float]]

    @property
    def first(self) -> Run:
        """The run with the smallest seed."""
        return self.runs[0]

    def over_runs(self, value: Callable[[Run], float | None]) -> Spread | None:
        """Return mean and spread of `value` over the runs."""
        return Spread.of([value(run) for run in self.runs])

    def figure(self, name: str) -> Spread | None:
        """Return mean and spread of a figure."""
        return Spread.of([figures.get(name) for figures in self.figures])


def recipes(runs: Sequence[Run], found: Found) -> list[Recipe]:
    """Return the recipes of `runs`, from the smallest student to the largest."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.table("settings").items() if name != "seed"}
        key = {name: run.get(name) for name in DISTINGUISHING} | {"method": run.method, "settings": settings}
        alike.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    labels: list[str] = []
    starts = {run.method: {other.text("start") for other in runs if other.method == run.method} for run in runs}
    made: list[Recipe] = []
    for members in alike.values():
        members.sort(key=lambda run: (run.number("seed") or 0, run.name))
        sizes = "/".join(str(size) for size in members[0].table("requested").values())
        label = f"{members[0].method} {sizes}".strip()
        label = members[0].name if label in labels else label
        labels.append(label)
        method, start = members[0].method, members[0].text("start")
        series = f"{method}: {start}" if len(starts[method]) > 1 and start else method
        made.append(Recipe(label, series, members, [student_figures(run, found) for run in members]))
    return sorted(made, key=lambda recipe: recipe.first.number("sizes", "student", "encoder") or 0)


def student_figures(run: Run, found: Found) -> dict[str, float]:
    """Return what the student of `run` scored, by the name of the figure."""
    return _own(run, "student") | _evaluated(found.of_student(run))


def teacher_figures(runs: Sequence[Run], found: Found) -> dict[str, Spread]:
    """Return what the teacher of `runs` scored in them and on tasks, with the spread over runs."""
    every = [_own(run, "teacher") | _evaluated(found.of_teacher(run)) for run in runs]
    names = dict.fromkeys(name for figures in every for name in figures)
    spreads = {name: Spread.of([figures.get(name) for figures in every]) for name in names}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def lower_is_better(figure: str) -> bool:
    """Return whether a smaller value of the figure is the better one."""
    return any(word in LOWER_IS_BETTER for word in figure.split())


def _own(run: Run, side: str) -> dict[str, float]:
    values = {name: run.number("scores", side, name) for name in run.table("scores", side)}
    return {name.replace("_", " "): value for name, value in values.items() if value is not None}


def _evaluated(evaluations: Sequence[EvalReport]) -> dict[str, float]:
    """Return the first figure of each task on each split."""
    return {
        f"{result.title} {result.figures[0].replace('_', ' ')} ({split})": scores[result.figures[0]]
        for evaluation in evaluations
        for result in evaluation.tasks.values()
        for split, scores in result.mean.items()
    }
