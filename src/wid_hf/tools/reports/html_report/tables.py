"""Tables and facts of the page, as texts.

Takes runs, recipes and evaluations; gives rows of cells, which the template escapes. What a report lacks is a dash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ...evaluation.attention import AttentionComparison
from ..eval_report import EvalReport
from .found import Found, Run
from .recipes import Recipe, Spread

ABSENT = "-"
SIZES = {"total": "parameters", "encoder": "encoder parameters", "bytes": "bytes of weights"}


@dataclass(frozen=True)
class Row:
    """Cells, the first of which may be a link into the page, `#link`."""

    cells: list[str]
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A heading for each column, and rows of as many cells."""

    header: list[str]
    rows: list[Row]


def anchor(run: Run) -> str:
    """Return the place of a run in the page."""
    return f"run-{run.name}"


def summary(runs: Sequence[Run]) -> Table:
    """Return sizes, latency and scores of the teacher and of every student of `runs`."""
    figures = list(dict.fromkeys(name for run in runs for name in run.table("scores", "student")))
    header = ["model", "method", "seed", *SIZES.values(), "ms, student / teacher"]
    header += [figure.replace("_", " ") for figure in figures]
    teacher = ["teacher", "", "", *(_count(runs[0].number("sizes", "teacher", size)) for size in SIZES), ""]
    for figure in figures:
        teacher.append(_spread(Spread.of([run.number("scores", "teacher", figure) for run in runs])))
    rows = [Row(teacher)]
    for run in runs:
        cells = [run.name, run.method, _count(run.number("seed"))]
        cells += [_share(run.number("sizes", "student", size), run.number("sizes", "teacher", size)) for size in SIZES]
        cells.append(" / ".join(_milliseconds(run, side) for side in ("student", "teacher")))
        for figure in figures:
            cells.append(" → ".join(_figure(run.number("scores", side, figure)) for side in ("start", "student")))
        rows.append(Row(cells, anchor(run)))
    return Table(header, rows)


def comparison(recipes: Sequence[Recipe], teacher: Mapping[str, Spread], names: Sequence[str]) -> Table:
    """Return a row per recipe: what it cost and what it reached, mean and spread over seeds."""
    header = ["method and sizes", "seeds", *names, "steps", "tokens", "seconds", "encoder parameters"]
    header += ["learning rates", "start"]
    rows = [Row(["teacher", "", *(_spread(teacher.get(name)) for name in names), *[""] * 6])]
    for recipe in recipes:
        first = recipe.first
        size = first.number("sizes", "student", "encoder")
        rates = first.table("settings", "learning_rates")
        seeds = [run.number("seed") for run in recipe.runs]
        cells = [recipe.label, ", ".join(_count(seed) for seed in seeds)]
        cells += [_spread(recipe.figure(name)) for name in names]
        cells += [_spread(recipe.over_runs(_reader(name)), _count) for name in ("steps", "tokens", "seconds")]
        cells += [_count(size), "\n".join(f"{kind} {rate}" for kind, rate in rates.items()) or ABSENT]
        rows.append(Row([*cells, first.text("start") or ABSENT], anchor(first)))
    return Table(header, rows)


def attention(found: Mapping[str, AttentionComparison]) -> Table:
    """Return a row per student: its mean divergence, and that of every layer."""
    layers = range(len(next(iter(found.values())).divergence))
    rows = [
        Row([label, *(f"{value:.3f}" for value in (each.mean, *(fmean(heads) for heads in each.divergence)))])
        for label, each in found.items()
    ]
    return Table(["student", "all", *(f"layer {at}" for at in layers)], rows)


def tasks(evaluations: Mapping[str, EvalReport], found: Found) -> Table:
    """Return a row per model, task, split and figure, as `eval_report.json` has it."""
    header = ["model", "evaluated in", "task", "split", "figure", "mean", "spread", "seeds", "learning rate"]
    rows = []
    for name, evaluation in evaluations.items():
        model, link = _whose(evaluation, found)
        for result in evaluation.tasks.values():
            rate = ABSENT if result.best_learning_rate is None else f"{result.best_learning_rate:g}"
            for split, scores in result.mean.items():
                for figure in result.figures:
                    spread = ABSENT if result.spread is None else _figure(result.spread[split][figure])
                    cells = [model, name, result.title, split, figure.replace("_", " "), _figure(scores[figure])]
                    rows.append(Row([*cells, spread, str(result.seeds), rate], link))
    return Table(header, rows)


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the other facts about a run."""
    settings = {name: value for name, value in run.table("settings").items() if value is not None}
    training = (
        f"{_count(run.number('steps'))} steps, {_count(run.number('tokens'))} {run.text('numbers') or 'tokens'}, "
    )
    training += f"{_count(run.number('seconds'))} s"
    return [
        ("Teacher", run.teacher),
        ("Requested", _pairs(run.table("requested"))),
        ("Heads", run.text("settled") or run.text("head_strategy") or ABSENT),
        ("Method", run.method),
        ("Start", run.text("start") or ABSENT),
        ("Objective", run.text("objective") or ABSENT),
        ("Outputs", run.text("outputs") or ABSENT),
        ("Training", training),
        ("Seed", _count(run.number("seed"))),
        ("Narrow from step", _count(run.number("narrow_from"))),
        ("Latency", _latency(run)),
        ("Hardware", run.text("hardware") or ABSENT),
        ("Versions", _pairs(run.table("versions"))),
        ("Settings", _pairs(settings)),
        ("Weights, SHA-256", _pairs(run.table("fingerprints"))),
    ]


def evaluation_facts(evaluation: EvalReport) -> list[tuple[str, str]]:
    """Return the other facts about an evaluation; of its runs, each value once."""
    runs = [run for result in evaluation.tasks.values() for run in result.runs]
    rates, seeds, hardware = ({run.get(name): None for run in runs} for name in ("learning_rate", "seed", "hardware"))
    versions = {_pairs(run.get("versions") or {}): None for run in runs}
    return [
        ("Model", f"{evaluation.model}, {evaluation.model_class}"),
        ("Learning rates", _each(rates)),
        ("Seeds", _each(seeds)),
        ("Hardware", _each(hardware)),
        ("Versions", "; ".join(versions) or ABSENT),
        ("Weights, SHA-256", evaluation.fingerprint),
    ]


def scored_on_other_texts(runs: Sequence[Run]) -> bool:
    """Return whether the teacher's own scores differ between runs, which they do only on other texts or masks."""
    scores = {json.dumps(run.table("scores", "teacher"), sort_keys=True) for run in runs}
    return len(scores) > 1


def _whose(evaluation: EvalReport, found: Found) -> tuple[str, str]:
    for run in found.runs:
        if evaluation in found.of_student(run):
            return run.name, anchor(run)
        if evaluation in found.of_teacher(run):
            return f"{evaluation.model} (teacher)", ""
    return f"{evaluation.model} (of no run here)", ""


def _latency(run: Run) -> str:
    batch = run.get("latency", "batch")
    size = f" for {' x '.join(map(str, batch))} {_numbers(run)}" if isinstance(batch, list) else ""
    return f"{_milliseconds(run, 'student')} ms, the teacher {_milliseconds(run, 'teacher')} ms{size}"


def _numbers(run: Run) -> str:
    return run.text("numbers") or "tokens"


def _milliseconds(run: Run, side: str) -> str:
    seconds = run.number("latency", "seconds", side)
    return ABSENT if seconds is None else f"{1000 * seconds:.1f}"


def _share(value: float | None, whole: float | None) -> str:
    return _count(value) + (f"\n{value / whole:.1%}" if value is not None and whole else "")


def _count(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _figure(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _spread(spread: Spread | None, text: Callable[[float | None], str] = _figure) -> str:
    if spread is None:
        return ABSENT
    return text(spread.mean) + (f" ± {text(spread.deviation)}" if spread.deviation else "")


def _reader(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.number(name)


def _each(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values if value is not None) or ABSENT


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()) or ABSENT
