"""Random stops of `wid-hf compress`: nothing that was complete is lost, and the next run clears up.

`python benchmarks/interruptions` stops 100 runs at random moments by SIGKILL, SIGTERM, SIGINT and a disk that becomes
full (a small one in memory that it mounts itself, where that is allowed), and writes docs/interruptions.md. It leaves
one record in benchmarks/records; `--anew` stops anew.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).parents[1] / "shared"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

import typer
from page import made_by, table, write_section
from program import ended, start
from stops import KINDS, OUTPUTS, Inputs, stop, why_no_small_disk
from store import ROOT, Record, Store
from toys import save_teacher, write_texts
from transformers import BertForMaskedLM

PAGE = ROOT / "docs" / "interruptions.md"
RECORDS = ROOT / "benchmarks" / "records"
HEAD = (
    "# Interruptions measured\nWritten by `python benchmarks/interruptions`; do not edit. What is kept when is told in "
    "[training.md](training.md).\n"
)
LANES = 2  # runs at the same time


def main(
    stops: Annotated[int, typer.Option(min=1, help="How many runs to stop.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each run.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    anew: Annotated[bool, typer.Option("--anew", help="Stop anew what is recorded.")] = False,
    records: Annotated[Path, typer.Option(help="Folder of records.")] = RECORDS,
    page: Annotated[Path, typer.Option(help="Page to write.")] = PAGE,
) -> None:
    """Stop runs at random moments and write what was left of them."""
    store = Store(records, anew=anew)
    settings = {"what": "interruptions", "stops": stops, "steps": steps, "seed": seed, "next": "--resume"}
    record = store.get(settings, lambda: _measured(stops, steps, seed))
    assert record is not None
    print(write_section(page, HEAD, "Random stops", _lines(record)))
    sys.exit(int(any(_wrong(each) for each in record["found"])))


def _measured(stops: int, steps: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="wid-hf-interruptions-") as scratch:
        folder = Path(scratch)
        inputs = Inputs(save_teacher(folder / "teacher", BertForMaskedLM), write_texts(folder / "texts.txt"), steps)
        (folder / "probe").mkdir()
        no_disk = why_no_small_disk(folder / "probe")
        began = time.monotonic()
        whole = ended(start(inputs.words(folder / "whole", 0), folder, folder / "whole.log", folder))
        longest = 1.2 * (time.monotonic() - began)
        if whole:
            raise RuntimeError((folder / "whole.log").read_text())
        kinds = [kind for kind in KINDS if kind != "disk full" or no_disk is None]
        lanes = [
            _lane(folder, number, range(number, stops, LANES), kinds, inputs, longest, seed) for number in range(LANES)
        ]
        for child in lanes:
            os.waitpid(child, 0)
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("stop-*.json"))]
    if len(found) < stops:
        raise RuntimeError(f"only {len(found)} of {stops} stops were made; see above")
    return {"found": found, "longest": longest, "no_disk": no_disk}


def _lane(folder: Path, number: int, stops: range, kinds: list[str], inputs: Inputs, longest: float, seed: int) -> int:
    """Make the stops of one lane in a process of its own, and leave a record of each in `folder`."""
    child = os.fork()
    if child:
        return child
    try:
        for at in stops:
            chance = random.Random(1000 * seed + at)
            place = folder / f"stop-{at:03}"
            place.mkdir()
            kind, output = kinds[at // LANES % len(kinds)], OUTPUTS[at // LANES // len(kinds) % len(OUTPUTS)]
            record = stop(kind, output, chance, place, inputs, longest)
            (folder / f"stop-{at:03}.json").write_text(json.dumps(record))
            mark = "WRONG" if _wrong(record) else "right"
            print(
                f"{at:3} {mark} {kind}, {output}: exit {record['exit']}, kept {record['kept']}",
                *(f"{key}: {record[key]}" for key in ("lost", "broken", "left", "hangs", "traceback") if record[key]),
                file=sys.stderr,
                flush=True,
            )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _wrong(found: Record) -> bool:
    return bool(found["lost"] or found["broken"] or found["left"] or found["hangs"] or found["traceback"])


def _lines(record: Record) -> Iterator[str]:
    found, settings = record["found"], record["settings"]
    yield (
        f"`python benchmarks/interruptions --stops {settings['stops']}`: runs of `wid-hf compress` with a tiny teacher "
        f"and {settings['steps']} steps, each stopped at a random moment of its first {record['longest']:.0f} seconds "
        "(a whole run takes five sixths of that). The output is a new folder, one that holds an earlier student and is "
        "replaced, the current folder, or a link. Afterwards the same run is started with `--resume`; it is refused "
        "where the first one has made its student."
    )
    yield ""
    if record["no_disk"]:
        yield f"No disk became full, because none could be mounted: {record['no_disk']}."
        yield ""
    rows = []
    for kind in KINDS:
        some = [each for each in found if each["kind"] == kind]
        if some:
            rows.append(
                (
                    kind,
                    *map(
                        str,
                        (
                            len(some),
                            sum(each["exit"] == 0 for each in some),
                            sum(each["exit"] != 0 and bool(each["kept"]) for each in some),
                            sum(each["exit"] != 0 and not each["kept"] for each in some),
                            sum(each["exit_of_next"] == 0 for each in some),
                            sum(bool(each["lost"] or each["broken"]) for each in some),
                            sum(bool(each["left"]) for each in some),
                        ),
                    ),
                )
            )
    head = (
        "stopped by",
        "runs",
        "ended before the stop, or in spite of it",
        "stopped, a student was kept",
        "stopped before there was one",
        "went on to a whole student",
        "something complete lost",
        "something left after the next run",
    )
    yield from table(head, rows)
    yield made_by([record])


if __name__ == "__main__":
    typer.run(main)
