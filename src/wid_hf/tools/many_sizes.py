"""Students of several sizes from one teacher, in one call: a folder for each, and one page about all.

Takes a teacher, rows and the shares of parameters that students may have; gives their reports. Called by `wid-hf
compress --sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..budget import SizeSearch, Target
from ..errors import ConfigError
from ..hub.model_size import model_size
from ..hub.own_files import FILE_NAME
from ..hub.paths import expanded
from ..objectives.registry import may_be_headless
from .compress import Tell, write_student
from .output_folder import WORK
from .recipe import CompressSettings
from .reports.html_report import write_html_report
from .reports.wid_report import Report
from .teachers import Teacher
from .training_data import Source


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
    made: dict[str, Report] = {}
    for place, target in sorted(counted.items(), key=lambda each: -int(each[1].params or 0)):
        if resume and (folder / place / FILE_NAME).exists():
            tell(f"{place}: complete already.")
        else:
            tell(f"{place}:")
            search = replace(asked, target=target, seconds=asked.seconds / len(counted))
            stopped = resume and (folder / f"{place}{WORK}").exists()
            rest: dict[str, Any] = {"overwrite": overwrite, "resume": stopped, "told": told, "tell": tell}
            # Each run gets a copy on the same weights: training may change a teacher's.
            own = subject.replaced(subject.model, subject.processor)
            _, made[place] = write_student(own, train, folder / place, search, settings, **rest)
        if chain:
            subject = Teacher(str(folder / place), headless=may_be_headless(settings.task))
    return made, write_html_report(folder)


def name(size: str) -> str:
    """Return the name of a student's folder: `50-percent` of `50%`."""
    return size.strip().replace("%", "-percent")
