"""One public report as a small input with the outcome that is right for it, tried in a process of its own.

Takes a function that does what the reporter did; gives what came of it in words.
"""

from __future__ import annotations

import hashlib
import inspect
import multiprocessing
import os
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets.utils.logging import disable_progress_bar as disable_bars_of_datasets
from own_process import in_own_process
from store import Record
from transformers.utils.logging import disable_progress_bar

from wid_hf import WidError

LIMIT = 180  # seconds that a case may take before its process is ended; idle machines need less than 20
RIGHT, REFUSED, WRONG = "right", "refused", "WRONG"
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """One report.

    Attributes:
        kind: heading that it stands under.
        reports: `repo#number` of those who met it in other tools.
        tried: in words, for the table.
        refused: None where the right outcome is the right value, else what a refusal must tell: patterns of the thing
            and of the way out.
        run: does it in an empty folder; returns where the value is right, and raises otherwise.
    """

    kind: str
    reports: tuple[str, ...]
    tried: str
    refused: tuple[str, ...] | None
    run: Callable[[Path], None]

    @property
    def expected(self) -> str:
        """Return the outcome that is right for this case."""
        return RIGHT if self.refused is None else REFUSED

    @property
    def source(self) -> str:
        """Return what changes when the case does."""
        text = inspect.getsource(self.run) + repr((self.kind, self.reports, self.tried, self.refused))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Refusal(WidError):
    """What the command line printed when it exited with an error and no traceback."""


def case(
    kind: str, reports: str, tried: str, *, refused: tuple[str, ...] | None = None
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Make a function a case of its own name; `reports` are separated by commas."""

    def keep(run: Callable[[Path], None]) -> Callable[[Path], None]:
        assert run.__name__ not in CASES, run.__name__
        CASES[run.__name__] = Case(kind, tuple(reports.split(", ")), tried, refused, run)
        return run

    return keep


def outcome(name: str) -> Record:
    """Try a case in a process of its own and return its outcome, what was told, and its seconds."""
    before = time.monotonic()
    found = in_own_process(_tried, name, method="fork")  # what it needs is imported, and nothing was computed here
    if found is None:
        found = {"outcome": WRONG, "told": f"its process was killed, or took more than {LIMIT} s", "seconds": None}
    if found["seconds"] is None:
        found["seconds"] = time.monotonic() - before
    return {**found, "source": CASES[name].source}


def _tried(name: str) -> Record:
    """Do what the reporter did; called in a process of its own, which the alarm ends."""
    signal.alarm(LIMIT)
    # A user's program is no worker; some of transformers' collators take what is not the main process for one.
    multiprocessing.current_process().name = "MainProcess"
    torch.set_num_threads(1)
    disable_progress_bar()
    disable_bars_of_datasets()
    warnings.simplefilter("ignore")
    began, here = time.monotonic(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            made, told = judged(CASES[name], Path(folder))
        finally:
            os.chdir(here)
    signal.alarm(0)
    return {"outcome": made, "told": told, "seconds": time.monotonic() - began}


def judged(tried: Case, folder: Path) -> tuple[str, str]:
    """Run a case and return its outcome, and the refusal or what is wrong in words."""
    try:
        tried.run(folder)
    except WidError as refusal:
        text = _without(folder, str(refusal))
        if tried.refused is None:
            return WRONG, f"refused, where the right value was expected: {text}"
        missing = [pattern for pattern in tried.refused if not re.search(pattern, text, re.IGNORECASE)]
        if missing:
            return WRONG, f"the refusal does not tell {', '.join(missing)}: {text}"
        return REFUSED, text
    except Exception as error:  # anything else is what the reporter complained of
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = _without(folder, f"{type(error).__name__}: {error}")
        return WRONG, f"{text} ({Path(where.filename).name}, line {where.lineno})"
    return (RIGHT, "") if tried.refused is None else (WRONG, "accepted, where a refusal was expected")


def _without(folder: Path, text: str) -> str:
    """Return a text in which paths are relative to the folder, which has another name in each run."""
    for path in dict.fromkeys((str(folder.resolve()), str(folder))):
        text = text.replace(f"{path}/", "").replace(path, ".")
    return text
