"""What starts and schedules are worth: without training, after equal training, and at which learning rates.

`python benchmarks/calibration ablation|decoder|starts|sweep|schedules` prints a section of docs/starts.md and writes it
there. Every run leaves a record in .cache/results, so that an interrupted series goes on where it stopped; delete the
folder to measure anew.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import datasets
import typer
from curves import draw_curves
from page import before_and_after, figures, made_by, table, write_section
from starts import CALIBRATED, DECODER_STARTS, SCHEDULES, STARTS, Start, measure_start, measure_teacher
from store import ROOT, Record, Store
from subjects import DECODER, SUBJECTS, Subject
from training import train

from wid_hf.tools.recipe import LEARNING_RATES

PAGE = ROOT / "docs" / "starts.md"
HEAD = """# Starts measured
Written by `python benchmarks/calibration`; do not edit. Each section is what the command under its title made of the \
records in `.cache/results`; a run that is recorded there is not repeated.
"""
RESULTS = ROOT / ".cache" / "results"
ALL = STARTS | SCHEDULES
SCRATCH_RATE = 1e-3  # the best of ../shared/design.md's coarse sweep for a half-width student
TRAINED = ("identity, first indices", "identity, largest variance", CALIBRATED)
SWEPT = (CALIBRATED, "identity, first indices")
STEPS = {"reaction-bert": 300, "minilm": 500}

Teachers = Annotated[list[str] | None, typer.Option("--teacher", help=f"Only these of {', '.join(SUBJECTS)}.")]
Widths = Annotated[
    list[str] | None, typer.Option("--width", help="Only students of these widths, as tables name them.")
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no run after this many minutes.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps; 300 for the reaction BERT, 500 for MiniLM.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Output = Annotated[Path, typer.Option(help="Page to write the section to.")]

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)


@app.command()
def ablation(
    teacher: Teachers = None, width: Widths = None, limit_minutes: Minutes = None, output: Output = PAGE
) -> None:
    """Measure each piece of the calibrated start at three widths, without training."""
    lines = ["`python benchmarks/calibration ablation`: no training at all.", ""]
    store = _store(limit_minutes)
    for subject in _subjects(teacher):
        lines += _untrained(subject, store, width, STARTS)
    print(write_section(output, HEAD, "Without training", lines))


@app.command()
def decoder(width: Widths = None, limit_minutes: Minutes = None, output: Output = PAGE) -> None:
    """Measure starts of SmolLM2-135M, one of them in an orthogonal basis: perplexity on Wikinews."""
    lines = ["`python benchmarks/calibration decoder`: no training at all.", ""]
    lines += _untrained(DECODER, _store(limit_minutes), width, DECODER_STARTS)
    print(write_section(output, HEAD, "A decoder without training", lines))


@app.command()
def starts(
    teacher: Teachers = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    output: Output = PAGE,
) -> None:
    """Train from three starts equally: the learning rates of `wid-hf compress`, half width."""
    store = _store(limit_minutes)
    for subject in _subjects(teacher):
        runs = {name: (name, LEARNING_RATES[subject.objective, STARTS[name].init]) for name in TRAINED}
        told = "equal training at half width, with the learning rates that `wid-hf compress` has for each start."
        count = steps or STEPS[subject.name]
        lines = _trained(f"starts --teacher {subject.name}", told, subject, store, runs, count, seeds, batch_size)
        print(write_section(output, HEAD, f"After {count} steps of equal training: {subject.name}", lines))


@app.command()
def sweep(
    teacher: Teachers = None,
    steps: Steps = None,
    seeds: Seeds = 1,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    output: Output = PAGE,
) -> None:
    """Train at half width with learning rates over one grid for each start, so that none is better tuned."""
    store = _store(limit_minutes)
    for subject in _subjects(teacher):
        runs = {
            f"{STARTS[start].init}, {rates[0]:.0e} / {rates[1]:.0e}": (start, rates)
            for start in SWEPT
            for rates in subject.grid
        }
        told = "at half width. A run is named by its start and its learning rates, compactors / teacher's weights."
        count = steps or STEPS[subject.name]
        lines = _trained(f"sweep --teacher {subject.name}", told, subject, store, runs, count, seeds, batch_size)
        print(write_section(output, HEAD, f"Learning rates: {subject.name}", lines))


@app.command()
def schedules(
    steps: Annotated[int, typer.Option(min=50, help="Optimizer steps of each run.")] = 600,
    seeds: Seeds = 1,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    output: Output = PAGE,
) -> None:
    """Train the reaction BERT to half width by the paper's schedule, narrow when calibrated, and from scratch."""
    subject = SUBJECTS["reaction-bert"]
    rates = {name: LEARNING_RATES[subject.objective, start.init] for name, start in SCHEDULES.items()}
    rates["from scratch"] = (SCRATCH_RATE, SCRATCH_RATE)
    runs = {name: (name, rates[name]) for name in SCHEDULES}
    store = _store(limit_minutes)
    picture = output.with_name("schedules.png")
    told = (
        "the reaction BERT to half width, with the learning rates that `wid-hf compress` has for each start "
        f"({SCRATCH_RATE:g} from scratch). Progressive runs take the default schedule, whose choices are final after "
        "2 % of all steps, or one ten times slower."
    )
    lines = _trained("schedules", told, subject, store, runs, steps, seeds, batch_size, picture)
    if picture.exists():
        lines += [f"![Losses and widths over steps]({picture.name})", ""]
    print(write_section(output, HEAD, "Schedules", lines))


def _subjects(names: list[str] | None) -> list[Subject]:
    if unknown := set(names or ()) - set(SUBJECTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(SUBJECTS)}.")
    return [SUBJECTS[name] for name in names or SUBJECTS]


def _store(minutes: float | None) -> Store:
    return Store(RESULTS) if minutes is None else Store(RESULTS, time.monotonic() + 60 * minutes)


def _untrained(subject: Subject, store: Store, widths: list[str] | None, starts: Mapping[str, Start]) -> list[str]:
    """Return lines about these starts of all students of a subject, or of those of these widths."""
    data = {"calibration": subject.calibration_texts, "scored": subject.scored_texts, "length": subject.max_length}
    ask = {"what": "untrained", "teacher": subject.name}
    whole = store.get({**ask, "start": "teacher", **data}, lambda: measure_teacher(subject))
    records: dict[tuple[str, str], Record] = {}
    wanted = {width: sizes for width, sizes in subject.sizes.items() if not widths or width in widths}
    for width, sizes in wanted.items():
        for name, start in starts.items():
            made = store.get(
                {**ask, "start": name, "sizes": dict(sizes), **data},
                lambda sizes=sizes, start=start: measure_start(subject, sizes, start, seed=0),
            )
            if made is not None:
                records[width, name] = made
    rows = [["", "teacher", f"{whole['parameters']:,}", *figures(whole, subject.figures), "", ""]] if whole else []
    rows += [
        [
            width,
            name,
            f"{made['parameters']:,}",
            *figures(made, subject.figures),
            f"{made['start_seconds']:.0f} ({made['start_cpu_seconds']:.0f})",
            f"{made['start_gigabytes']:.2f}",
        ]
        for (width, name), made in records.items()
    ]
    if not rows:
        return [f"{subject.name}: no run is finished yet.", ""]
    missing = len(wanted) * len(starts) - len(records)
    head = ["width", "start", "parameters", *subject.figures, "seconds (CPU)", "GB beyond the models"]
    return [
        f"**{subject.name}**, calibrated on {subject.calibration_texts} texts and scored on {subject.scored_texts} "
        f"others of at most {subject.max_length} tokens, one seed. {made_by(records.values())}"
        + (f" {missing} runs are missing." if missing else ""),
        *table(head, rows),
    ]


def _trained(
    command: str,
    told: str,
    subject: Subject,
    store: Store,
    runs: Mapping[str, tuple[str, tuple[float, float]]],
    steps: int,
    seeds: int,
    batch_size: int,
    picture: Path | None = None,
) -> list[str]:
    """Return lines about trainings: `runs` are starts with learning rates, by the name that the table has for them.

    The first line is the whole `command` and what is `told` of it.
    Losses and widths of the first seed's runs are drawn to `picture`.
    """
    head = [
        f"`python benchmarks/calibration {command} --steps {steps} --seeds {seeds} --batch-size {batch_size}`: {told}",
        "",
    ]
    sizes = subject.sizes["1/2"]
    found: dict[str, list[Record]] = {name: [] for name in runs}
    for seed in range(seeds):  # first all with one seed, so that what a short time allows can be compared
        for name, (start, rates) in runs.items():
            settings = {
                "what": "trained",
                "teacher": subject.name,
                "start": start,
                "sizes": dict(sizes),
                "steps": steps,
                "batch_size": batch_size,
                "rates": list(rates),
                "seed": seed,
                "calibration": subject.calibration_texts,
                "scored": subject.scored_texts,
                "length": subject.max_length,
            }
            made = store.get(
                settings,
                lambda start=start, rates=rates, seed=seed: train(
                    subject, sizes, ALL[start], steps=steps, batch_size=batch_size, rates=rates, seed=seed
                ),
            )
            if made is not None:
                found[name].append(made)
    done = [made for records in found.values() for made in records]
    if not done:
        return [*head, f"{subject.name}: no run is finished yet.", ""]
    missing = len(runs) * seeds - len(done)
    if picture is not None:
        draw_curves({name: records[0] for name, records in found.items() if records}, picture)
    became = any(made.get("narrow_from") for made in done)
    rows = [
        [
            name,
            str(len(records)),
            *before_and_after(records, subject.figures),
            f"{records[0]['training_seconds']:.0f}",
            *([str(records[0]["narrow_from"] or "")] if became else []),
        ]
        for name, records in found.items()
        if records
    ]
    return [
        *head,
        f"**{subject.name}**, {steps} steps of {batch_size} texts of at most {subject.max_length} tokens, scored on "
        f"{subject.scored_texts} others; before → after. {made_by(done)}"
        + (f" {missing} runs are missing." if missing else ""),
        *table(["run", "seeds", *subject.figures, "seconds", *(["narrow from step"] if became else [])], rows),
    ]


if __name__ == "__main__":
    datasets.disable_progress_bars()
    app()
