"""What starts and schedules are worth: without training, after equal training, and at which learning rates.

`python benchmarks/calibration start|train` prints a section of docs/results.md and writes it there,
`ablation|decoder|starts|sweep|schedules` one of docs/starts.md. Every run leaves a record in benchmarks/records, so
that an interrupted series goes on where it stopped; `--records` names another folder to measure anew. Records of
`start` and `train` belong to a version of the library: a series of one version goes on in a worktree of its commit
that writes to the same folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import datasets
import typer
from cases import CASES
from equal_training import TRAINED as WAYS
from equal_training import equally_trained
from page import write_section
from sections import trained, untrained
from starting import started, timed
from starts import CALIBRATED, CALIBRATIONS, DECODER_STARTS, SCHEDULES, STARTS
from store import ROOT, Store
from subjects import DECODER, SUBJECTS, TAGGER

from wid_hf.objectives import OBJECTIVES
from wid_hf.tools.recipe import usual_learning_rates

PAGE = ROOT / "docs" / "starts.md"
RESULTS_PAGE = PAGE.with_name("results.md")  # beside what methods are worth
HEAD = """# Starts measured
Written by `python benchmarks/calibration`; do not edit. Each section is what the command under its title made of the \
records in `benchmarks/records`; a run that is recorded there is not repeated. Until 0.2 a calibrated start selected \
indices: what was measured with commits of 0.1 says so by its commits (see [results.md](results.md) for both).
"""
RESULTS_HEAD = "# Results\n"
RECORDS = ROOT / "benchmarks" / "records"
SCRATCH_RATE = 1e-3  # the best of ../shared/design.md's coarse sweep for a half-width student
TRAINED = ("identity, first indices", "identity, largest variance", CALIBRATED)
SWEPT = (CALIBRATED, "identity, first indices")
EQUAL_STEPS = [300, 1000]
EQUALLY_TRAINED = {each.name: each for each in (*SUBJECTS.values(), TAGGER)}
STEPS = {"reaction-bert": 300, "minilm": 500}

Teachers = Annotated[list[str] | None, typer.Option("--teacher", help=f"Only these of {', '.join(SUBJECTS)}.")]
Widths = Annotated[
    list[str] | None, typer.Option("--width", help="Only students of these widths, as tables name them.")
]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin no run after this many minutes.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps; 300 for the reaction BERT, 500 for MiniLM.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
Records = Annotated[Path, typer.Option(help="Folder of records.")]
Output = Annotated[Path, typer.Option(help="Page to write the section to.")]

T = TypeVar("T")

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)


@app.command()
def start(
    subject: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(CASES)}.")] = None,
    start: Annotated[
        list[str] | None, typer.Option("--start", help=f"Only these of {', '.join(CALIBRATIONS)}.")
    ] = None,
    width: Widths = None,
    texts: Annotated[
        list[str] | None, typer.Option(help="Only from these calibration texts, as tables name them.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="A version of the library; what is recorded of it is shown, too.")
    ] = None,
    timing: Annotated[
        bool, typer.Option("--time", help="Measure the seconds of two starts, which take turns, and their ratio.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each start is timed.")] = 3,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = RESULTS_PAGE,
) -> None:
    """Measure students of all teachers at their starts, with no training at all, and the seconds that these take."""
    store = _store(records, limit_minutes)
    named = _named(start, CALIBRATIONS)
    if timing and len(named) != 2:
        raise typer.BadParameter(f"two starts take turns, not {', '.join(named)}: name two by --start.")
    for name, whole in _named(subject, CASES).items():
        case = replace(
            whole, sizes=_named(width, whole.sizes, optional=True), texts=_named(texts, whole.texts, optional=True)
        )
        flags = [f" --start {one!r}" for one in start or ()] + [f" --beside {one}" for one in beside or ()]
        command = f"`python benchmarks/calibration start {name}{' --time' if timing else ''}{''.join(flags)}`"
        lines = timed(case, named, store, rounds) if timing else started(case, named, store, beside or ())
        title = f"{'Seconds of starts' if timing else 'Starts'}: {name}"
        print(write_section(output, RESULTS_HEAD, title, [f"{command}: no training at all.", "", *lines]))


@app.command(name="train")
def train_equally(
    subject: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(EQUALLY_TRAINED)}.")] = None,
    start: Annotated[
        list[str] | None, typer.Option("--start", help=f"Only these of {', '.join(CALIBRATIONS)}.")
    ] = None,
    width: Widths = None,
    steps: Annotated[list[int], typer.Option(min=1, help="Optimizer steps.")] = EQUAL_STEPS,
    seeds: Seeds = 3,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Only these seeds; the first ones.")] = None,
    trained: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(WAYS)}.")] = None,
    batch_size: BatchSize = 64,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = RESULTS_PAGE,
) -> None:
    """Train students from whole starts: compactors, or the student that they merge to."""
    flags = "".join([*(f" --start {one!r}" for one in start or ()), *(f" --steps {count}" for count in steps)])
    store = _store(records, limit_minutes)
    for name, each in _named(subject, EQUALLY_TRAINED).items():
        lines = equally_trained(
            each,
            _named(width or ["1/2", "1/4"], each.sizes, optional=width is None),
            _named(start, CALIBRATIONS),
            store,
            steps=steps,
            seeds=seed or range(seeds),
            batch_size=batch_size,
            trained=list(_named(trained, dict.fromkeys(WAYS, True))),
        )
        told = "".join(f" --seed {each}" for each in seed or ()) or f" --seeds {seeds}"
        head = f"`python benchmarks/calibration train {name}{flags}{told} --batch-size {batch_size}`"
        print(write_section(output, RESULTS_HEAD, f"Equal training: {name}", [f"{head}.", "", *lines]))


@app.command()
def ablation(
    teacher: Teachers = None,
    width: Widths = None,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGE,
) -> None:
    """Measure each piece of the calibrated start at three widths, without training."""
    lines = ["`python benchmarks/calibration ablation`: no training at all.", ""]
    store = _store(records, limit_minutes)
    for subject in _named(teacher, SUBJECTS).values():
        lines += untrained(subject, store, width, STARTS)
    print(write_section(output, HEAD, "Without training", lines))


@app.command()
def decoder(
    width: Widths = None, limit_minutes: Minutes = None, records: Records = RECORDS, output: Output = PAGE
) -> None:
    """Measure starts of SmolLM2-135M, one of them turned: perplexity on Wikinews."""
    lines = ["`python benchmarks/calibration decoder`: no training at all.", ""]
    lines += untrained(DECODER, _store(records, limit_minutes), width, DECODER_STARTS)
    print(write_section(output, HEAD, "A decoder without training", lines))


@app.command()
def starts(
    teacher: Teachers = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGE,
) -> None:
    """Train from three starts equally: the learning rates of `wid-hf compress`, half width."""
    store = _store(records, limit_minutes)
    for subject in _named(teacher, SUBJECTS).values():
        runs = {
            name: (name, usual_learning_rates(OBJECTIVES[subject.objective], STARTS[name].init)) for name in TRAINED
        }
        told = "equal training at half width, with the learning rates that `wid-hf compress` has for each start."
        count = steps or STEPS[subject.name]
        lines = trained(f"starts --teacher {subject.name}", told, subject, store, runs, count, seeds, batch_size)
        print(write_section(output, HEAD, f"After {count} steps of equal training: {subject.name}", lines))


@app.command()
def sweep(
    teacher: Teachers = None,
    steps: Steps = None,
    seeds: Seeds = 1,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGE,
) -> None:
    """Train at half width with learning rates over one grid for each start, so that none is better tuned."""
    store = _store(records, limit_minutes)
    for subject in _named(teacher, SUBJECTS).values():
        runs = {
            f"{STARTS[start].init}, {rates[0]:.0e} / {rates[1]:.0e}": (start, rates)
            for start in SWEPT
            for rates in subject.grid
        }
        told = "at half width. A run is named by its start and its learning rates, compactors / teacher's weights."
        count = steps or STEPS[subject.name]
        lines = trained(f"sweep --teacher {subject.name}", told, subject, store, runs, count, seeds, batch_size)
        print(write_section(output, HEAD, f"Learning rates: {subject.name}", lines))


@app.command()
def schedules(
    steps: Annotated[int, typer.Option(min=50, help="Optimizer steps of each run.")] = 600,
    seeds: Seeds = 1,
    batch_size: BatchSize = 16,
    limit_minutes: Minutes = None,
    records: Records = RECORDS,
    output: Output = PAGE,
) -> None:
    """Train the reaction BERT to half width by the paper's schedule, narrow when calibrated, and from scratch."""
    subject = SUBJECTS["reaction-bert"]
    rates = {name: usual_learning_rates(OBJECTIVES[subject.objective], start.init) for name, start in SCHEDULES.items()}
    rates["from scratch"] = (SCRATCH_RATE, SCRATCH_RATE)
    runs = {name: (name, rates[name]) for name in SCHEDULES}
    store = _store(records, limit_minutes)
    picture = output.with_name("schedules.png")
    told = (
        "the reaction BERT to half width, with the learning rates that `wid-hf compress` has for each start "
        f"({SCRATCH_RATE:g} from scratch). Progressive runs take the default schedule, whose choices are final after "
        "2 % of all steps, or one ten times slower."
    )
    lines = trained("schedules", told, subject, store, runs, steps, seeds, batch_size, picture)
    if picture.exists():
        lines += [f"![Losses and widths over steps]({picture.name})", ""]
    print(write_section(output, HEAD, "Schedules", lines))


def _named(names: list[str] | None, known: Mapping[str, T], optional: bool = False) -> dict[str, T]:
    """Return those of `known` that are named, or all; unknown ones are legal if `optional`."""
    if (unknown := set(names or ()) - set(known)) and not optional:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}.")
    return {name: value for name, value in known.items() if not names or name in names}


def _store(records: Path, minutes: float | None) -> Store:
    return Store(records) if minutes is None else Store(records, time.monotonic() + 60 * minutes)


if __name__ == "__main__":
    datasets.disable_progress_bars()
    app()
