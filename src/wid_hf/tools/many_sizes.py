"""Students of several sizes from one teacher, in one call: a folder for each, and one page about all.

Takes a teacher, rows and the shares of parameters that students may have; gives their reports. Called by `wid-hf
compress --sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..budget import SizeSearch, Target
from ..errors import ConfigError
from ..hub.model_size import model_size
from ..hub.own_files import FILE_NAME
from ..hub.paths import expanded
from ..objectives.registry import may_be_headless
from .compress import Tell, folders, write_student
from .compression import training_arguments
from .find_sizes import find_many_sizes
from .output_folder import WORK
from .recipe import CompressSettings
from .reports.html_report import write_html_report
from .reports.wid_report import Report
from .teachers import Teacher
from .training_data import Source
from .training_settings import checked


def compress_sizes(
    teacher: str,
    train: Source,
    output: str | Path,
    sizes: Sequence[str],
    asked: SizeSearch,
    settings: CompressSettings,
    *,
    chain: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    told: Mapping[str, Any] | None = None,
    tell: Tell = lambda words: None,
) -> tuple[dict[str, Report], Path]:
    """Make a student for each of several numbers of parameters, the largest first.

    Args:
        teacher: folder or Hub id; loaded once.
        train: rows to train on, or their name.
        output: folder for the students' folders, such as `50-percent`, and for `report`, a page with quality against
            parameters and latency.
        sizes: at least two numbers or shares of parameters, `"50%"` or `"20M"`.
        asked: how sizes are searched for; its target is left out. The search may take `seconds` for all students
            together.
        settings: how to train.
        chain: each student is made from the next larger one in the place of the teacher.
        revision: of the teacher on the Hub.
        trust_remote_code: passed on to transformers.
        overwrite: see `write_student`.
        resume: go on: students that are complete stay, and one that was stopped goes on.
        told: `command` and `run` of the reports.
        tell: is called with what a user should know.

    Returns:
        The report of each student that was made, by its folder's name, and the page.

    Raises:
        ConfigError: fewer than two sizes, one twice, or one that is no number of parameters.
        WidError: see `write_student`.
    """
    targets = [Target(params=size) for size in sizes]
    subject = Teacher(
        teacher, revision=revision, trust_remote_code=trust_remote_code, headless=may_be_headless(settings.task)
    )
    whole = model_size(subject.model)
    counted = {name(size): target.counted(whole) for size, target in zip(sizes, targets, strict=True)}
    if len(counted) < 2 or len(counted) < len(sizes):
        raise ConfigError(f"sizes={[*sizes]} are not two or more different numbers of parameters, such as 50%,25%.")
    folder = Path(expanded(output))
    seconds = asked.seconds / len(counted)
    ordered = sorted(counted.items(), key=lambda each: -int(each[1].params or 0))
    searches = {place: replace(asked, target=target, seconds=seconds) for place, target in ordered}
    complete = {place for place in searches if resume and (folder / place / FILE_NAME).exists()}
    run = _Run(train, folder, settings, overwrite, resume)
    rest = {place: search for place, search in searches.items() if place not in complete}
    found = {} if chain else run.find(subject, rest)
    made: dict[str, Report] = {}
    for place, search in searches.items():
        tell(f"{place}: complete already." if place in complete else f"{place}:")
        if place not in complete:
            more: dict[str, Any] = {**run.written(place), "found": found.get(place), "told": told, "tell": tell}
            # Each run gets a copy on the same weights: training may change a teacher's.
            own = subject.replaced(subject.model, subject.processor)
            _, made[place] = write_student(own, train, folder / place, search, settings, **more)
        if chain:
            subject = Teacher(str(folder / place), headless=may_be_headless(settings.task))
    return made, write_html_report(folder)


@dataclass(frozen=True)
class _Run:
    """What all students of one call share."""

    train: Source
    folder: Path
    settings: CompressSettings
    overwrite: bool
    resume: bool

    def written(self, place: str) -> dict[str, bool]:
        """Return whether a student's folder may be replaced, and whether its run goes on."""
        stopped = self.resume and (self.folder / f"{place}{WORK}").exists()
        return {"overwrite": self.overwrite, "resume": stopped}

    def find(self, teacher: Teacher, searches: Mapping[str, SizeSearch]) -> dict[str, dict[str, Any]]:
        """Return how the sizes of each student were found, all by one survey of the teacher.

        Those that an earlier run has found are left out, and in all processes but the first there are none.

        Raises:
            OutputError: a folder cannot be written; before the search.
            WidError: see `find_sizes`.
        """
        if checked(training_arguments(self.settings, self.folder)).process_index:
            return {}
        new = {}
        for place, search in searches.items():
            _, work = folders(teacher.name, self.train, self.folder / place, self.settings, **self.written(place))
            if work.search(search) is None:
                new[place] = search
        found = find_many_sizes(teacher, [*new.values()], self.train, self.settings) if new else []
        return {place: each.record for place, each in zip(new, found, strict=True)}


def name(size: str) -> str:
    """Return the name of a student's folder: `50-percent` of `50%`."""
    return size.strip().replace("%", "-percent")
