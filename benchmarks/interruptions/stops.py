"""One random stop of `compress`, and what is left of the work afterwards.

Takes a kind of stop and a moment; gives a record: what was complete before and after, what was lost, what was left
behind. Nothing here raises because something was lost: the record says so.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from program import HANGS, ended, start
from students import complete_students, loads

from wid_hf.tools.output_folder import LAST_GOOD, WORK

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "disk full")
OUTPUTS = ("new", "replaced", "current folder", "link")
SIZES = ["--hidden-size", "12", "--intermediate-size", "24"]
MEGABYTES = 6  # of the small disk


@dataclass(frozen=True)
class Inputs:
    """What every run reads, and how many steps it trains."""

    teacher: Path
    texts: Path
    steps: int

    def words(self, output: Path, seed: int, *more: str) -> list[str]:
        """Return the words after `wid-hf`."""
        return [
            "compress",
            str(self.teacher),
            "--train",
            str(self.texts),
            "--output",
            str(output),
            *SIZES,
            "--steps",
            str(self.steps),
            "--batch-size",
            "8",
            "--max-length",
            "12",
            "--validation-texts",
            "16",
            "--seed",
            str(seed),
            "--calibration-samples",
            "40",
            "--set",
            "save_steps=4",
            *more,
        ]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk in memory at `folder` for a while.

    Raises:
        CalledProcessError: mounting is not allowed here.
    """
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "wid-hf-interruptions", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def why_no_small_disk(folder: Path) -> str | None:
    """Return why no small disk can be mounted at `folder`; None if it can."""
    try:
        with small_disk(folder):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return (getattr(error, "stderr", None) or str(error)).strip()


def stop(kind: str, place: str, chance: random.Random, folder: Path, inputs: Inputs, longest: float) -> dict[str, Any]:
    """Stop one run at a random moment, let another one with `--resume` follow, and return what happened.

    Args:
        kind: of `KINDS`.
        place: of `OUTPUTS`, what the output is.
        chance: draws the moment.
        folder: an empty one, for this stop alone.
        inputs: what is compressed.
        longest: the latest moment in seconds.
    """
    disk, elsewhere = folder / "disk", folder / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    if kind != "disk full":
        return _stop(kind, place, chance, folder, inputs, longest)
    with small_disk(disk):
        return _stop(kind, place, chance, folder, inputs, longest)


def _stop(kind: str, place: str, chance: random.Random, folder: Path, inputs: Inputs, longest: float) -> dict[str, Any]:
    disk, elsewhere, output = folder / "disk", folder / "elsewhere", folder / "disk" / "out"
    more, where = [], disk
    if place == "replaced":
        more = ["--overwrite"]
        assert ended(start(inputs.words(output, 1), disk, folder / "first.log", elsewhere)) == 0, folder
    elif place == "link":
        (disk / "real").mkdir()
        output.symlink_to("real")
    elif place == "current folder":
        output.mkdir()
        where, output = output, Path()
    before = complete_students(folder)
    moment = chance.uniform(0, longest)
    child = start(inputs.words(output, 2, *more), where, folder / "stopped.log", elsewhere)
    began = time.monotonic()
    time.sleep(moment)
    if kind == "disk full":
        _fill(disk / "filler")
    else:
        with suppress(ProcessLookupError):
            os.kill(child, getattr(signal, kind))
    code = ended(child)
    seconds = time.monotonic() - began
    (disk / "filler").unlink(missing_ok=True)
    after = complete_students(folder)
    # The same run once more goes on, and clears up, whether or not it is refused because something is there.
    again = ended(start(inputs.words(output, 2, *more, "--resume"), where, folder / "again.log", elsewhere))
    last = complete_students(folder)
    said = (folder / "stopped.log").read_text(errors="replace")
    replaced = place == "replaced" and any(
        path.name in ("out", "output") for digest, path in after.items() if digest not in before
    )
    lost = [str(path) for digest, path in before.items() if digest not in after and not replaced]
    # The last state of a run goes when the run has gone on to its end.
    gone = [path for digest, path in after.items() if digest not in last]
    lost += [str(path) for path in gone if again != 0 or not path.name.endswith(LAST_GOOD)]
    promised = code == 0 or "is complete, in" in said or "steps is in" in said
    if promised and not after.keys() - before.keys():
        lost.append("what the program said it had saved")
    broken = {str(path): why for path in last.values() if (why := loads(path)) is not None}
    left = [*folder.rglob(".*"), *(folder.glob(f"*/*{WORK}") if again == 0 else [])]
    return {
        "kind": kind,
        "output": place,
        "moment": moment,
        "seconds": seconds,
        "exit": code,
        "exit_of_next": again,
        "kept": sorted(path.name for digest, path in after.items() if digest not in before),
        "lost": lost,
        "broken": broken,
        "left": [str(path.relative_to(folder)) for path in left],
        "hangs": HANGS in (code, again),
        "traceback": "Traceback" in said and kind != "disk full",
    }


def _fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
