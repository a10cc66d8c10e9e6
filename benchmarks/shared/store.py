"""Finished runs, one JSON file each, so that an interrupted series goes on where it stopped.

Takes the settings of a run and a function that makes it, gives its record. A record is found again by its settings
alone: it says with which commit of the library it was made, and whoever changes the code deletes the folder to measure
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console

from wid_hf.atomic_write import atomic_write
from wid_hf.tools.reports.wid_report import hardware_name, package_versions

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]
VERSION = "WID_HF_VERSION"  # of the library, told where the sources lie without their history


@dataclass(frozen=True)
class Store:
    """A folder of records; after `deadline` (`time.monotonic`) nothing new is begun.

    With `anew` what is recorded is made once more.
    """

    folder: Path
    deadline: float = inf
    anew: bool = False

    def get(self, settings: Record, make: Callable[[], Record]) -> Record | None:
        """Return the record of `settings`, made now if there is none or all are made anew; None without time for it."""
        label = " ".join(str(value) for value in settings.values())
        file = self.folder / settings["what"] / f"{run_name(settings)}.json"
        if file.exists() and not self.anew:
            return json.loads(file.read_text(encoding="utf-8"))
        if time.monotonic() > self.deadline:
            return None
        with Console(stderr=True).status(label):
            began = time.monotonic()
            made = make()
        record = {
            "settings": settings,
            "seconds": time.monotonic() - began,
            "commit": _commit(),
            "hardware": hardware_name(),
            "versions": package_versions(),
            **made,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as unfinished:
            unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        Console(stderr=True).print(f"{record['seconds']:.0f} s: {label}", highlight=False)
        return record

    def records(self, what: str) -> list[Record]:
        """Return all records of runs of this kind, in the order of their names."""
        files = sorted((self.folder / what).glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def run_name(settings: Record) -> str:
    """Return a short name that only runs with these settings have."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def library_version() -> str:
    """Return the last commit of the library, with a mark of what has changed in it since, if anything did."""
    if told := os.environ.get(VERSION):
        return told
    package = ROOT / "src"
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(str(file.relative_to(package)).encode() + file.read_bytes())
    changed = f"+{found.hexdigest()[:6]}" if _git("status", "--porcelain", "--", "src") else ""
    return (_git("log", "-1", "--format=%h", "--", "src") or "unknown") + changed


def _commit() -> str:
    """Return the last commit of the library, with a mark if it or these benchmarks have changed since."""
    if told := os.environ.get(VERSION):
        return told
    changed = _git("status", "--porcelain", "--", "src", "benchmarks")
    return (_git("log", "-1", "--format=%h", "--", "src") or "unknown") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
