"""Everything that a GPU is needed for, in one call of at most eight minutes.

In a session that is lent a GPU (the tool `status` says `can_start_another`), here, in the root of its checkout:

    make setup teachers                                    # unless they are there
    .venv/bin/python benchmarks/gpu.py --prepare           # after the last commit: what must travel (30 MB)
    .venv/bin/python benchmarks/gpu.py --rehearse          # every step with tiny sizes on this CPU; compiles nothing

then one call of the tool `run`:

    command: PYTHONUNBUFFERED=1 python3 benchmarks/gpu.py
    carry: [".cache/gpu"]
    timeout_s: 520

and, with the folder that its reply names as `files_at`:

    mkdir -p benchmarks/records/gpu && cp FILES_AT/*.json benchmarks/records/gpu/
    .venv/bin/python benchmarks/gpu.py --show benchmarks/records/gpu

If the trainings were cut off, a second call does them alone in what is left of the 15 minutes (`timeout_s: 320`):
`python3 benchmarks/gpu.py --only trainings --minutes 4.7`.

The machine there has Python 3.12, torch 2.11 and transformers 5.17 and no network. It lacks `datasets` with what that
needs, which travel as wheels; wid-hf itself is used from `src`. Files of records are written as they are made, so that
a cut-off loses no finished run:

- machine.json, progressive.json, llama.json, memory.json: checks of `benchmarks/on_device`;
- tests.json: tests/devices on the GPU (`WID_HF_TEST_DEVICE=cuda`), what passed and what was said of failures;
- speed.json: the step table, records of `benchmarks/speed`;
- trainings.json: equal training of the reaction BERT at quarter width, records of `benchmarks/calibration train`;
- steps.json: what ran, how long, how it ended, and the last lines that it printed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

sys.path += [str(Path(__file__).parent / name) for name in ("on_device", "shared")]

import typer
from sharing import shared_gpu
from steps import ROOT, Run, Step
from tables import tables
from travel import carried_data, environment, prepared

SLOWER = 6  # than a GPU's machine may be the one of a rehearsal, which is busy with other things
REST = 10  # seconds of the whole that are left for ending processes and writing records

Minutes = Annotated[float, typer.Option(min=0.5, help="End everything after this many minutes.")]
Output = Annotated[Path | None, typer.Option(help="Folder of records; $OUT, or .cache/gpu-records.")]


def main(
    prepare: Annotated[bool, typer.Option("--prepare", help="Put all that must travel into .cache/gpu.")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Run every step with tiny sizes on the CPU.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only these groups: checks, speed, trainings.")] = None,
    minutes: Minutes = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 3000,
    at_once: Annotated[int, typer.Option(min=1, help="Trainings side by side.")] = 14,
    output: Output = None,
    show: Annotated[
        Path | None, typer.Option(help="Print the tables of a folder of records, and nothing else.")
    ] = None,
) -> None:
    """Run the device tests, checks, the step table and equal trainings, each with a limit of its own."""
    groups = {"checks": _checks, "speed": _speed, "trainings": _trainings}
    if unknown := set(only or ()) - set(groups):
        raise typer.BadParameter(f"--only {', '.join(sorted(unknown))}: give one of {', '.join(groups)}.")
    if show is not None:
        print("\n".join(tables(show)))
        return
    if prepare:
        print(prepared())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what runs, too
    deadline = time.monotonic() + 60 * minutes - REST
    output = output or Path(os.environ.get("OUT", ROOT / ".cache" / "gpu-records"))
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wid_hf-gpu-") as folder:
        scratch = Path(folder)
        run = Run(output, scratch, deadline, environment(scratch, rehearse), SLOWER if rehearse else 1)
        for name, group in groups.items():
            if not only or name in only:
                group(run, rehearse, steps, at_once)
        run.gather()
    print("\n".join(tables(output)))
    if any(end["end"] != "done" for end in run.ends):
        raise typer.Exit(1)


def _checks(run: Run, rehearse: bool, steps: int, at_once: int) -> None:
    """Tests and checks side by side, as nothing in them is timed; the compiler meets its graphs there, too."""
    tiny = ["--tiny"] if rehearse else []
    made = [
        Step(name, ["benchmarks/on_device", name, "--output", str(run.output / f"{name}.json"), *tiny], 120)
        for name in ("machine", "llama", "progressive")
    ]
    tests = ["-m", "pytest", "-v", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    tests += ["--junitxml", str(run.scratch / "tests.xml")]
    tests += ["tests/devices/simulated/test_flows.py", "-k", "buffers"] if rehearse else ["-n", "6", "tests/devices"]
    made.append(Step("tests", tests, 120, {"WID_HF_TEST_DEVICE": "cpu" if rehearse else "cuda"}))
    if not rehearse:
        warm = _speed_words(run.scratch / "warm-up", rehearse, ["--compile", "--variant", "narrow", "--rounds", "1"])
        made.append(Step("compile once", warm, 120))
    run.side_by_side(made, 2 if rehearse else len(made))


def _speed(run: Run, rehearse: bool, steps: int, at_once: int) -> None:
    """The step table and peaks of memory, one after the other: nothing else runs meanwhile."""
    rounds = ["--rounds=1", "--warm-up=0"] if rehearse else ["--rounds=10", "--warm-up=3"]
    both, one = ["--teacher=frozen", *([] if rehearse else ["--teacher=trained"])], ["--teacher=trained"]
    records, variants = run.scratch / "speed", ["--variant", "narrow", "--variant", "teacher"]
    once, each = ["--calibration-rows=0" if rehearse else "--calibration-rows=256"], [*variants, *rounds, *both]
    compiled = [*each, "--compile"]
    replayed = ["--variant", "narrow", *rounds, *one, "--compile", "--compile-mode=reduce-overhead"]
    peaks = ["benchmarks/on_device", "memory", "--output", str(run.output / "memory.json")]
    made = [
        Step("speed", _speed_words(records, rehearse, [*each, *once]), 80),
        Step("memory", [*peaks, *(["--tiny"] if rehearse else [])], 50),
        Step("speed, compiled", _speed_words(records, rehearse, compiled), 100),
        Step("speed, graphs replayed", _speed_words(records, rehearse, replayed), 60),
    ]
    run.side_by_side(made, 1)


def _speed_words(records: Path, rehearse: bool, words: Sequence[str]) -> list[str]:
    shape = ("1", "192", "2x16", "fp32") if rehearse else ("12", "384", "64x128", "bf16")
    asked = [f"--{name}={value}" for name, value in zip(("layers", "width", "batch", "dtype"), shape, strict=True)]
    # Memory has a step of its own: here each variant would take another process.
    asked += ["--no-memory", "--calibration-rows=0", *words]
    return ["benchmarks/speed", *asked, f"--records={records}", f"--output={records.with_suffix('.md')}"]


def _trainings(run: Run, rehearse: bool, steps: int, at_once: int) -> None:
    """Compactors against merged students, from several starts and seeds: small models, which share the GPU."""
    places = _rehearsed(run.scratch) if rehearse else carried_data()
    starts, seeds = (["turned"], [0]) if rehearse else (["turned", "refined"], [0, 1, 2])
    asked = [(start, seed) for seed in seeds for start in starts] + ([] if rehearse else [("selection", 0)])
    made = []
    for start, seed in asked:
        for trained in ("compactors", "merged student"):
            name = f"{start}-{trained.split()[0]}-{seed}"
            words = ["benchmarks/calibration", "train", "reaction-bert", "--width", "1/4", "--start", start]
            words += ["--trained", trained, "--seed", str(seed), "--steps", str(2 if rehearse else steps)]
            words += ["--batch-size", "64", "--records", str(run.scratch / "trainings")]
            words += ["--output", str(run.scratch / f"{name}.md")]
            made.append(Step(f"trainings, {name}", words, run.left, places))
    with shared_gpu(run):
        run.side_by_side(made, 2 if rehearse else at_once)


def _rehearsed(scratch: Path) -> dict[str, str]:
    """Make a tiny teacher with texts in a process of its own, and return where they lie."""
    found = {"WID_HF_TEACHERS": str(scratch / "teachers"), "WID_HF_DATA": str(scratch / "data")}
    subprocess.run(
        [sys.executable, "benchmarks/on_device/rehearsal.py"],
        cwd=ROOT,
        env={**os.environ, **found},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return found


if __name__ == "__main__":
    typer.run(main)
