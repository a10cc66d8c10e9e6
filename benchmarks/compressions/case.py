"""What is compressed: a teacher and rows, by which words of `wid-hf compress`, and what is looked at afterwards."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from places import DATA, TEACHERS
from store import ROOT

CACHE = ROOT / ".cache" / "compressions"
NAMED = {"teachers": ".cache/teachers", "data": "../shared/data", "cache": ".cache/compressions"}

Figures = Mapping[str, float | str]
Further = Callable[[Path, Path], Mapping[str, Figures]]  # of a teacher's and a student's folder, as `Case.further`


def nothing(cache: Path) -> None:
    """Make no rows: they lie in the data as the command reads them."""


@dataclass(frozen=True)
class Case:
    """One student.

    Attributes:
        name: of the case.
        words: what is typed behind `wid-hf compress`, the teacher first; `{teachers}`, `{data}` and `{cache}` stand for
            folders.
        make: writes rows, and a teacher that is made here, below the folder `{cache}`, unless they are there.
        further: figures of the folders of teacher and student, for each figure what `teacher` and `student` have.
        told: what a reader should know of the rows.
    """

    name: str
    words: str
    make: Callable[[Path], None] = nothing
    further: Further | None = None
    told: str = ""

    def shown(self) -> str:
        """Return the command as it is typed in the folder of the project."""
        words = shlex.join([*self._words(NAMED), "--output", f"{NAMED['cache']}/{self.name}/student"])
        return f"wid-hf compress {words}"

    def command(self, cache: Path) -> list[str]:
        """Return the words behind `wid-hf` of the same command, with whole paths."""
        places = {"teachers": str(TEACHERS), "data": str(DATA), "cache": str(cache)}
        return ["compress", *self._words(places), "--output", str(self.student(cache))]

    def teacher(self, cache: Path) -> Path:
        """Return the teacher's folder."""
        return Path(self.command(cache)[1])

    def student(self, cache: Path) -> Path:
        """Return the student's folder."""
        return cache / self.name / "student"

    def _words(self, places: Mapping[str, str]) -> list[str]:
        return [word.format(**places) for word in shlex.split(self.words)]
