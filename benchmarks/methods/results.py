"""docs/results.md: what the records of all methods say, and two kinds of pictures.

Takes contests and records; gives Markdown. Nothing is run, and no figure comes from anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import mean

from contests import SWEPT_WIDTH, Contest, Rates
from methods import METHODS
from page import made_by, spread, table, write_between
from pictures import draw_attention, draw_curve
from store import Record

PAGE_NAME = "results.md"
HEAD = (
    "Written by commands; do not edit. `python benchmarks/methods results` writes what methods are worth from the "
    "records in `benchmarks/records`; the commands under the titles make these: they go on where they were stopped, "
    "and `--records` names another folder to measure anew. What the methods are is in [methods.md](methods.md). "
    "Further down is what starts are worth, by `python benchmarks/calibration start` and `train`; older measurements "
    "of starts, learning rates and schedules are in [starts.md](starts.md), what a step costs in [speed.md](speed.md).",
    "",
    "All students of one width have the same shape, steps, tokens, texts and masks; each method trains at the best of "
    "four learning rates of its sweep. Figures are the mean over seeds ± the standard deviation (over n - 1). Seconds "
    "are those of training alone, on a machine that other work shared.",
)


def write_results(contests: Mapping[str, Contest], records: Sequence[Record], folder: Path) -> Path:
    """Write the part of `results.md` about methods, and its pictures, to `folder`."""
    lines = list(HEAD)
    for contest in contests.values():
        mine = [record for record in records if record["settings"]["teacher"] == contest.name]
        tuned = [record for record in mine if "tasks" in record["settings"]]
        for of_one in _by_budget(r for r in mine if "tasks" not in r["settings"]):
            widths = {record["settings"]["width"] for record in of_one}
            if widths == {SWEPT_WIDTH}:
                lines += _sweep(contest, of_one)
                continue
            compared = [record for record in of_one if record["settings"]["width"] in contest.compared]
            if len({record["settings"]["method"] for record in compared}) > 1:
                lines += _comparison(contest, compared, tuned, folder)
            whole = [record for record in of_one if record["settings"]["seed"] == 0 and "scores" in record]
            curves = {
                method: of_method
                for method in METHODS
                if len(of_method := [r for r in whole if r["settings"]["method"] == method]) > len(contest.compared)
            }
            if curves:
                lines += _curve(contest, curves, folder)
    path = folder / PAGE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    write_between(path, "# Results\n", "methods", lines)
    return path


def best_rates(contest: Contest, found: Sequence[tuple[Rates, Record]]) -> Rates | None:
    """Return the learning rates with the best first figure of the contest; None if all runs diverged."""
    figure = next(iter(contest.figures))

    def badness(run: tuple[Rates, Record]) -> float:
        scores = run[1].get("scores")
        return inf if scores is None else scores["student"][figure] * (-1 if contest.larger else 1)

    best = min(found, key=badness)
    return None if badness(best) == inf else best[0]


def _comparison(contest: Contest, records: Sequence[Record], tuned: Sequence[Record], folder: Path) -> list[str]:
    budget = records[0]["settings"]
    names = [method.name for method in contest.methods]
    found = {
        (width, name): of_one
        for width in contest.compared
        for name in names
        if (of_one := [r for r in records if (_setting(r, "width"), _setting(r, "method")) == (width, name)])
    }
    seeds = 1 + max(record["settings"]["seed"] for record in records)
    tuning, on_tasks = _on_tasks(tuned, records)
    teachers = [r for r in tuned if _is_teacher(r) and tuning is not None and r["settings"]["tuning"] == tuning]
    missing = len(contest.compared) * len(names) * seeds - sum(map(len, found.values()))
    told = f"{missing} of {len(contest.compared) * len(names) * seeds} students are missing. " if missing else ""
    untuned = len(records) - len(on_tasks)
    told += f"{untuned} are not scored on tasks yet. " if untuned else ""
    scores = [record["scores"]["teacher"] for record in records if "scores" in record]
    teacher = [f"{mean(of_one[name] for of_one in scores):{style}}" for name, style in contest.figures.items()]
    rows = [["", "teacher", "", str(seeds), *teacher, *_of_tasks(contest, teachers), "", "", "", ""]]
    rows += [
        [
            width,
            METHODS[name].title,
            _told(of_one[0]["settings"]["rates"]),
            str(len(of_one)),
            *_figures(contest, of_one),
            *_of_tasks(contest, [on_tasks[key] for r in of_one if (key := _student(r)) in on_tasks]),
            _looking(of_one),
            _parameters(of_one),
            _tokens(of_one),
            _seconds(of_one),
        ]
        for (width, name), of_one in found.items()
    ]
    tasks = [f"{task} ({split}, {figure})" for task, (split, figure) in contest.tasks.items()]
    head = [
        "width",
        "method",
        "learning rates",
        "seeds",
        *contest.figures,
        *tasks,
        "attention",
        "parameters",
        "tokens",
        "seconds",
    ]
    words = [f"--steps {budget['steps']} --batch-size {budget['batch_size']} --seeds {seeds}", *_words(tuning)]
    return [
        "",
        f"## {contest.title}: all methods, {budget['steps']} steps of {budget['batch_size']}",
        f"`python benchmarks/methods compare --teacher {contest.name} {' '.join(words)}`: before → after.",
        "",
        f"{_conditions(contest, records)}{_how_tuned(tuning)}Attention: mean Jensen-Shannon divergence, in bits, of "
        f"the student's heads from their teacher's. {told}{made_by([*records, *on_tasks.values(), *teachers])}",
        *table(head, rows),
        *_attention(contest, found, budget, folder),
    ]


def _on_tasks(tuned: Sequence[Record], records: Sequence[Record]) -> tuple[Record | None, dict[str, Record]]:
    """Return the fine-tuning that most of the students of `records` had, and their figures by student."""
    students = {_student(record) for record in records}
    ways: dict[str, dict[str, Record]] = {}
    for record in tuned:
        if not _is_teacher(record) and (student := _student(record)) in students:
            ways.setdefault(json.dumps(record["settings"]["tuning"]), {})[student] = record
    if not ways:
        return None, {}
    most = max(ways, key=lambda way: len(ways[way]))
    return json.loads(most), ways[most]


def _student(record: Record) -> str:
    """Return the settings of the training alone, as text."""
    settings = {name: value for name, value in record["settings"].items() if name not in ("tasks", "tuning")}
    return json.dumps(settings, sort_keys=True)


def _words(tuning: Record | None) -> list[str]:
    """Return the options of `compare` that ask for this fine-tuning."""
    if tuning is None:
        return []
    return [
        f"--tuning-steps {tuning['steps']} --tuning-batch-size {tuning['batch_size']}",
        *(f"--tuning-rate {rate:g}" for rate in tuning["learning_rates"]),
        *(f"--tuning-examples {count}" for count in (tuning["train_examples"],) if count is not None),
        *(f"--eval-examples {count}" for count in (tuning["eval_examples"],) if count is not None),
    ]


def _how_tuned(tuning: Record | None) -> str:
    if tuning is None:
        return ""
    rates = [f"{rate:g}" for rate in tuning["learning_rates"]]
    rate = f"learning rate {rates[0]}" if len(rates) == 1 else f"the best of {', '.join(rates)} on the split dev"
    most = tuning["eval_examples"]
    return (
        f"Tasks: fine-tuned for {tuning['steps']} steps of {tuning['batch_size']} at {rate}"
        f"{'' if most is None else f', scored on {most} rows of a split at most'}. "
    )


def _attention(
    contest: Contest, found: Mapping[tuple[str, str], Sequence[Record]], budget: Record, folder: Path
) -> list[str]:
    """Return a picture of where the students of the first seed look, a link for each width."""
    lines = []
    for width in contest.compared:
        first = {
            name: of_one[0]["attention"]
            for (of_width, name), of_one in found.items()
            if of_width == width and "attention" in of_one[0]
        }
        if first:
            share = width.replace("/", "-of-")
            file = f"attention-{contest.name}-{share}-{budget['steps']}x{budget['batch_size']}.png"
            draw_attention({METHODS[name].title: each for name, each in first.items()}, folder / "results" / file)
            lines += [
                f"Where the students of {width} width look, layer by layer and head by head, seed "
                f"{min(r['settings']['seed'] for rs in found.values() for r in rs)}; darker is farther from the "
                "teacher's head:",
                "",
                f"![Divergence of attention at {width} width](results/{file})",
                "",
            ]
    return lines


def _sweep(contest: Contest, records: Sequence[Record]) -> list[str]:
    budget, rows = records[0]["settings"], []
    style = next(iter(contest.figures.values()))
    for method in contest.methods:
        found = {
            _told(rates): (rates, record)
            for rates in contest.grid(method)
            for record in records
            if (_setting(record, "method"), _setting(record, "rates")) == (method.name, rates)
        }
        if found:
            best = best_rates(contest, list(found.values()))
            cells = []
            for told, (rates, record) in found.items():
                figure = "diverged"
                if "scores" in record:
                    figure = format(record["scores"]["student"][next(iter(contest.figures))], style)
                cells.append(f"{told}: {f'**{figure}**' if rates == best else figure}")
            rows.append([method.title, *cells, *[""] * (len(contest.grid(method)) - len(cells))])
    figure = next(iter(contest.figures)).replace("_", " ")
    return [
        "",
        f"## {contest.title}: learning rates, {budget['steps']} steps of {budget['batch_size']}",
        f"`python benchmarks/methods sweep --teacher {contest.name} --sweep-steps {budget['steps']} --batch-size "
        f"{budget['batch_size']}`: {figure} at width {SWEPT_WIDTH} after training at each, the best one bold. "
        "Learning rates: compactors / teacher's weights, or the student's.",
        "",
        f"{_conditions(contest, records)}{made_by(records)}",
        *table(["method", "", "", "", ""], rows),
    ]


def _curve(contest: Contest, by_method: Mapping[str, Sequence[Record]], folder: Path) -> list[str]:
    order = list(contest.sizes)
    curves = {
        METHODS[name].title: sorted(of_one, key=lambda r: order.index(r["settings"]["width"]))
        for name, of_one in by_method.items()
    }
    records = [record for of_one in curves.values() for record in of_one]
    budget = records[0]["settings"]
    file = f"sizes-{contest.name}-{budget['steps']}x{budget['batch_size']}.png"
    draw_curve(curves, list(contest.figures), folder / "results" / file)
    rows = [
        [
            r["settings"]["width"],
            "/".join(str(n) for n in r["settings"]["sizes"].values()),
            title,
            _told(r["settings"]["rates"]),
            _parameters([r]),
            *_figures(contest, [r]),
            _tokens([r]),
            _seconds([r]),
        ]
        for title, of_one in curves.items()
        for r in of_one
    ]
    whole = records[0]["scores"]["teacher"]
    told = ", ".join(
        f"{name.replace('_', ' ')} {format(whole[name], style)}" for name, style in contest.figures.items()
    )
    return [
        "",
        f"## {contest.title}: quality against size, {budget['steps']} steps of {budget['batch_size']}",
        f"`python benchmarks/methods sizes --teacher {contest.name} --steps {budget['steps']} --batch-size "
        f"{budget['batch_size']} {' '.join(f'--method {name}' for name in by_method)}`: before → after, one seed. "
        f"Teacher: {told}.",
        "",
        f"{_conditions(contest, records)}{made_by(records)}",
        *table(
            ["width", "sizes", "method", "learning rates", "parameters", *contest.figures, "tokens", "seconds"], rows
        ),
        f"![Quality against size](results/{file})",
    ]


def _conditions(contest: Contest, records: Iterable[Record]) -> str:
    settings = next(iter(records))["settings"]
    return (
        f"Teacher: {contest.name}. {settings['steps']} steps of {settings['batch_size']} texts of at most "
        f"{settings['length']} tokens of {settings['train']}, scored on {settings['scored']} others. "
        + (f"{contest.note} " if contest.note else "")
    )


def _by_budget(records: Iterable[Record]) -> list[list[Record]]:
    """Return records in groups of the same steps and batch size, by seed, more steps first."""
    groups: dict[tuple[int, int], list[Record]] = {}
    for record in sorted(records, key=lambda record: record["settings"]["seed"]):
        groups.setdefault((record["settings"]["steps"], record["settings"]["batch_size"]), []).append(record)
    return sorted(groups.values(), key=lambda members: -members[0]["settings"]["steps"])


def _setting(record: Record, name: str) -> object:
    return record["settings"].get(name)


def _is_teacher(record: Record) -> bool:
    return record["settings"]["method"] == "teacher"


def _figures(contest: Contest, records: Sequence[Record]) -> list[str]:
    """Return `start -> student ± standard deviation` for each figure; `diverged` where no run has any."""
    whole = [record["scores"] for record in records if "scores" in record]
    if not whole:
        return ["diverged" for _ in contest.figures]
    return [
        f"{format(mean(scores['start'][name] for scores in whole), style)} → "
        + spread([scores["student"][name] for scores in whole], style)
        for name, style in contest.figures.items()
    ]


def _of_tasks(contest: Contest, records: Sequence[Record]) -> list[str]:
    whole = [record["tasks"] for record in records if "tasks" in record]
    if not whole:
        return ["" for _ in contest.tasks]
    return [
        spread([tasks[task]["splits"][split][figure] for tasks in whole], ".1%")
        for task, (split, figure) in contest.tasks.items()
    ]


def _looking(records: Sequence[Record]) -> str:
    means = [record["attention"]["mean"] for record in records if "attention" in record]
    return spread(means, ".3f") if means else ""


def _parameters(records: Sequence[Record]) -> str:
    return ", ".join(f"{count:,}" for count in sorted({r["parameters"] for r in records if "parameters" in r}))


def _tokens(records: Sequence[Record]) -> str:
    counts = [record["tokens"] for record in records if "tokens" in record]
    return f"{mean(counts):,.0f}" if counts else ""


def _seconds(records: Sequence[Record]) -> str:
    seconds = [record["training_seconds"] for record in records if "training_seconds" in record]
    return f"{mean(seconds):.0f}" if seconds else ""


def _told(rates: Rates) -> str:
    return " / ".join(f"{rate:g}" for rate in rates.values())
