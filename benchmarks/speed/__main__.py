"""What a training step of a student costs, beside the bare student's, the teacher's and the mathematics done otherwise.

`python benchmarks/speed` prints a table and writes it as a section of docs/speed.md. Every case leaves a record in
.cache/results/speed, so that an interrupted series goes on where it stopped; `--anew` measures once more. Teachers are
BERTs with random weights. A GPU is used where there is one. Times are honest only on an idle machine. A processor
without units for bf16 is not asked for it unless `--dtype bf16` is given.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).parents[1] / "shared"))

import typer
from accelerator import chosen_device
from cases import Case, Sizes
from measure import bf16_ratio, measure_memory, measure_once, measure_steps
from page import made_by, table, write_section
from rich.console import Console
from rich.table import Table
from rows import COLUMNS, once_rows, step_rows
from store import ROOT, Record, Store
from variants import BARE, VARIANTS

from wid_hf.tools.reports.wid_report import hardware_name

PAGE = ROOT / "docs" / "speed.md"
RESULTS = ROOT / ".cache" / "results"
BASE = Sizes(layers=12, width=516)  # BERT-base; layers and width are replaced
LONGEST = 512
HEAD = """# Speed measured
Written by `python benchmarks/speed`; do not edit. An optimizer step is forward, backward, AdamW and freeing \
gradients; all variants stand in one process and take one step each in turn. Where they do not fit into memory \
together, fewer of them may (`--variant`).

- *bare*: the student as a stock model; *narrow*: the same student folded from its teacher, as `WidTrainer` \
trains it; *wide*: the wide phase of a progressive training.
- *activations*: the narrow student in activation space, every token carried through the teacher's full weights.
- *reference*: as the paper's own code trains to the end: every token through the teacher's weights and two square \
compactors beside each.
- *teacher*: training the teacher itself.

Seconds are medians with the least and the greatest; *x bare* is the ratio of medians to the bare student's, with the \
least and the greatest ratio of one round. GFLOP counts multiplications and additions of a step's products in 10⁹; \
*of it fold* is what a folded step has more of them than the stock one of its shapes: the fold and its backward pass. \
Memory is the peak of a step in a process of its own, *allowed* the bare student's with the teacher's weights, \
compactors and their optimizer state added.
"""
CALIBRATION_LENGTH = 128
DTYPES = ("fp32", "bf16")
TEACHERS = ("frozen", "trained")
LOGITS = ("full", "labelled")
COMPILE_MODES = ("default", "reduce-overhead")

Layers = Annotated[list[int] | None, typer.Option(min=1, help="Layers of teacher and student; 2 and 12.")]
Widths = Annotated[list[int] | None, typer.Option(min=1, help="Hidden sizes of students; 516 and 192.")]
Batches = Annotated[list[str] | None, typer.Option("--batch", help="Rows x tokens of a batch; 32x128 and 8x512.")]
Dtypes = Annotated[list[str] | None, typer.Option(help="fp32 or bf16 (autocast); both where bf16 is not slower.")]
Teachers = Annotated[list[str] | None, typer.Option(help="Whether its weights are frozen or trained; both.")]
Variants = Annotated[list[str] | None, typer.Option("--variant", help=f"Only these of {', '.join(VARIANTS)}.")]
MicroBatches = Annotated[int, typer.Option(min=1, help="Batches of an optimizer step.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Measured steps of each variant; 5.")]
WarmUp = Annotated[int, typer.Option(min=0, help="Steps before, beside the one whose products are counted.")]
Calibration = Annotated[
    int | None, typer.Option(min=0, help="Rows to calibrate on, 256; 0 leaves out what happens once in a training.")
]
Memory = Annotated[bool, typer.Option(help="Measure peaks of memory.")]
Logits = Annotated[
    str, typer.Option(help="Run heads on all positions (full) or on those with a label (labelled), all variants alike.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Run models through torch.compile.")]
CompileMode = Annotated[str, typer.Option(help=f"That of torch.compile: {' or '.join(COMPILE_MODES)}.")]
Small = Annotated[
    bool, typer.Option("--small", help="A quick look: 4 layers, 192, 8x128, fp32, 3 rounds, calibrated on 32 rows.")
]
Anew = Annotated[bool, typer.Option("--anew", help="Measure what is recorded once more.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Begin nothing after this many minutes.")]
Records = Annotated[Path | None, typer.Option(help="Folder of records; .cache/results.")]
Output = Annotated[Path, typer.Option(help="Page to write the section to.")]

app = typer.Typer(pretty_exceptions_enable=False, help=__doc__)


@app.command()
def main(
    layers: Layers = None,
    width: Widths = None,
    batch: Batches = None,
    dtype: Dtypes = None,
    teacher: Teachers = None,
    variant: Variants = None,
    micro_batches: MicroBatches = 1,
    rounds: Rounds = None,
    warm_up: WarmUp = 1,
    calibration_rows: Calibration = None,
    logits: Logits = "full",
    memory: Memory = True,
    compiled: Compile = False,
    compile_mode: CompileMode = "default",
    small: Small = False,
    anew: Anew = False,
    limit_minutes: Minutes = None,
    records: Records = None,
    output: Output = PAGE,
) -> None:
    """Measure every combination of what is asked for, print the table and write it to a page."""
    told = _told(layers, dtype, variant, micro_batches, logits, compiled and compile_mode, small)
    layers = layers or ([4] if small else [2, 12])
    widths = _fitting(width or ([192] if small else [516, 192]))
    shapes = [_shape(text) for text in batch or (["8x128"] if small else ["32x128", "8x512"])]
    without_bf16 = _without_bf16() if not dtype and not small else ""
    dtypes = _known("dtype", dtype or (DTYPES[:1] if small or without_bf16 else DTYPES), DTYPES)
    teachers = _known("teacher", teacher or TEACHERS, TEACHERS)
    names = _known("variant", [BARE, *(variant or VARIANTS)], VARIANTS)
    _known("logits", [logits], LOGITS)
    _known("compile-mode", [compile_mode], COMPILE_MODES)
    if compiled and logits != "full":
        raise typer.BadParameter("--compile fixes the whole forward, hooks and all: leave out --logits labelled.")
    rounds = rounds or (3 if small else 5)
    rows = calibration_rows if calibration_rows is not None else (32 if small else 256)

    deadline = inf if limit_minutes is None else time.monotonic() + 60 * limit_minutes
    store = Store(records or RESULTS, deadline, anew)
    ask = {"what": "speed", "hardware": hardware_name()}
    found: list[Record | None] = []
    lines: list[tuple[str, ...]] = []
    for sizes in (replace(BASE, layers=count, width=size) for count, size in product(layers, widths)):
        if rows:
            settings = {**ask, **asdict(sizes), "rows": rows, "length": CALIBRATION_LENGTH}
            made = store.get(settings, lambda sizes=sizes: {"once": measure_once(sizes, rows, CALIBRATION_LENGTH)})
            found.append(made)
            lines += once_rows(sizes, f"{rows}x{CALIBRATION_LENGTH}", made["once"]) if made else []
        for (count, length), kind, trained in product(shapes, dtypes, teachers):
            case = Case(sizes, count, length, micro_batches, kind, trained, logits, compiled, compile_mode)
            settings = {
                **ask,
                **asdict(case),
                "variants": names,
                "rounds": rounds,
                "warm_up": warm_up,
                "memory": memory,
            }
            made = store.get(settings, lambda case=case: {"variants": _measured(case, names, rounds, warm_up, memory)})
            found.append(made)
            lines += step_rows(case, made["variants"]) if made else []
    done = [record for record in found if record]
    title = ", ".join([hardware_name(), *told])
    if not done:
        print(f"{title}: nothing is measured yet.")
        return
    missing = len(found) - len(done)
    write_section(
        output,
        HEAD,
        title,
        [
            f"{rounds} rounds after {warm_up + 1} steps. {made_by(done)}{without_bf16}"
            + (f" {missing} of {len(found)} measurements are missing." if missing else ""),
            *table(COLUMNS, lines),
        ],
    )
    shown = Table(*COLUMNS, title=title)
    for line in lines:
        shown.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def _told(
    layers: list[int] | None,
    dtypes: list[str] | None,
    variants: list[str] | None,
    micro_batches: int,
    logits: str,
    compiled: str | bool,
    small: bool,
) -> list[str]:
    """Return what a section's title says of what was asked for other than by default."""
    words = {
        f"{' and '.join(map(str, layers or ()))} layers": layers,
        " and ".join(dtypes or ()): dtypes,
        " and ".join(variants or ()): variants,
        f"{micro_batches} batches a step": micro_batches > 1,
        "logits of labelled positions only": logits != "full",
        "compiled": compiled == "default",
        f"compiled, {compiled}": compiled not in (False, "default"),
        "a quick look": small,
    }
    return [said for said, holds in words.items() if holds]


def _without_bf16() -> str:
    """Return why bf16 is left out, said where it is slower than fp32; nothing where it is not."""
    slower = bf16_ratio(chosen_device())
    if slower <= 1:
        return ""
    return f" Products in bf16 take {slower:.0f} times as long as in fp32 here: left out, --dtype bf16 measures them."


def _fitting(widths: list[int]) -> list[int]:
    for width in widths:
        if width % BASE.heads or width >= BASE.teacher_width:
            raise typer.BadParameter(
                f"--width {width}: give a multiple of {BASE.heads}, the number of heads, below {BASE.teacher_width}."
            )
    return widths


def _shape(text: str) -> tuple[int, int]:
    """Return `(rows, length)` of a text like 32x128."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or not 1 <= int(found[2]) <= LONGEST or int(found[1]) < 1:
        raise typer.BadParameter(f"--batch {text}: give rows x tokens of at most {LONGEST}, such as 32x128.")
    return int(found[1]), int(found[2])


def _known(option: str, asked: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return what is asked for in the order of what is known."""
    if unknown := set(asked) - set(known):
        raise typer.BadParameter(f"--{option} {', '.join(sorted(unknown))} is none of {', '.join(known)}.")
    return [name for name in known if name in set(asked)]


def _measured(case: Case, names: list[str], rounds: int, warm_up: int, memory: bool) -> dict[str, Record]:
    """Return time and memory of each variant."""
    peaks = measure_memory(case, names) if memory else {}
    steps = measure_steps(case, names, rounds, warm_up)
    return {name: {**steps[name], **peaks.get(name, {})} for name in names}


if __name__ == "__main__":
    app()
