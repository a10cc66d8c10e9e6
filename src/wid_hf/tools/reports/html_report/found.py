"""The reports of runs and evaluations in a folder.

Takes a folder; gives `Run`s and evaluations, and what could not be read. A report may be of another version of wid-hf:
a field that it lacks, or that is of another kind than it should be, is None here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from ....errors import FormatError, OutputError
from ....hub.report_file import read_report
from ..eval_report import FILE_NAME as EVAL_FILE_NAME
from ..eval_report import EvalReport
from ..wid_report import FILE_NAME, Report

DEFAULT_METHOD = "wid"


@dataclass(frozen=True)
class Run:
    """One `wid_report.json`.

    Attributes:
        name: its folder relative to the given one, or the given one's own name.
        folder: where it lies, with the student's model beside it.
        values: what it holds.
    """

    name: str
    folder: Path
    values: dict[str, Any]

    def get(self, *path: str) -> Any:
        """Return the value at the keys `path`, None if there is none."""
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *path: str) -> float | None:
        """Return the finite number at `path`."""
        value = self.get(*path)
        return value if isinstance(value, int | float) and isfinite(value) else None

    def text(self, *path: str) -> str | None:
        """Return the text at `path`."""
        value = self.get(*path)
        return value if isinstance(value, str) else None

    def table(self, *path: str) -> dict[str, Any]:
        """Return the dictionary at `path`; an empty one if there is none."""
        value = self.get(*path)
        return value if isinstance(value, dict) else {}

    @property
    def method(self) -> str:
        """How the student was made."""
        return self.text("method") or DEFAULT_METHOD

    @property
    def teacher(self) -> str:
        """The teacher's name."""
        return self.text("teacher") or "a teacher that is not recorded"

    @property
    def losses(self) -> list[tuple[float, float]]:
        """Training loss `(step, loss)` as logged."""
        points = self.get("losses")
        points = points if isinstance(points, list) else []
        return [
            (point[0], point[1])
            for point in points
            if isinstance(point, list) and len(point) == 2 and all(isinstance(n, int | float) for n in point)
        ]

    @property
    def pictures(self) -> list[Path]:
        """PNGs beside the report."""
        return sorted(self.folder.glob("*.png"))

    @property
    def missing(self) -> list[str]:
        """Fields of current reports that this one lacks."""
        return [field.name for field in fields(Report) if field.name not in self.values]


@dataclass(frozen=True)
class Found:
    """Everything in one folder.

    Attributes:
        runs: in the order of their names.
        evaluations: by the name of their folder.
        unreadable: for each other file, by name, why it could not be read.
    """

    runs: list[Run]
    evaluations: dict[str, EvalReport]
    unreadable: dict[str, str]

    def of_student(self, run: Run) -> list[EvalReport]:
        """Return the evaluations of exactly the weights that `run` made."""
        return self._of(run.text("fingerprints", "student"))

    def of_teacher(self, run: Run) -> list[EvalReport]:
        """Return the evaluations of the weights that `run` started from."""
        return self._of(run.text("fingerprints", "teacher"))

    def _of(self, fingerprint: str | None) -> list[EvalReport]:
        return [each for each in self.evaluations.values() if each.fingerprint == fingerprint]


def read_folder(folder: Path) -> Found:
    """Return every report in `folder` and below it; hidden folders are left out.

    Raises:
        OutputError: there is no such folder, or no report that can be read in it.
    """
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}. Name one with students that `wid-hf compress` wrote.")
    found = Found([], {}, {})
    for path in _files(folder, FILE_NAME):
        try:
            values = read_report(path)
        except (OSError, ValueError) as error:
            found.unreadable[str(path.relative_to(folder))] = str(error)
        else:
            found.runs.append(Run(_name(path.parent, folder), path.parent, values))
    for path in _files(folder, EVAL_FILE_NAME):
        try:
            found.evaluations[_name(path.parent, folder)] = EvalReport.load(path.parent)
        except (OutputError, FormatError) as error:
            found.unreadable[str(path.relative_to(folder))] = str(error)
    if not found.runs and not found.evaluations:
        reasons = "".join(f"\n{name}: {reason}" for name, reason in found.unreadable.items())
        raise OutputError(
            f"{folder} holds no {FILE_NAME} and no {EVAL_FILE_NAME} that can be read. `wid-hf compress` and "
            f"`wid-hf eval` write them; name a folder that holds their outputs.{reasons}"
        )
    return found


def _files(folder: Path, name: str) -> list[Path]:
    paths = folder.rglob(name)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _name(folder: Path, root: Path) -> str:
    return folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
