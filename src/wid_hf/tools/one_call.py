"""`wid_hf.compress`: all that `wid-hf compress` does, as one call from Python.

Takes a teacher and rows, by name or loaded; gives the student and its report, and with `output` the folder that the
command writes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from ..budget import SizeSearch, Target
from ..config import WidConfig
from ..errors import ConfigError
from ..objectives.registry import may_be_headless
from .compress import write_student
from .compression import Compression, training_arguments
from .find_sizes import settled
from .recipe import CompressSettings
from .reports.wid_report import Report
from .teachers import Teacher
from .training_data import Source
from .training_settings import checked, stated

NAMES = {field.name for field in fields(CompressSettings)} - {"training", "validation"}
OTHERWISE = {"max_steps": "steps", "per_device_train_batch_size": "batch_size"}  # fields of TrainingArguments


def compress(
    teacher: str | PreTrainedModel,
    data: Source,
    config: WidConfig | Target | SizeSearch,
    *,
    args: TrainingArguments | None = None,
    processing_class: Any = None,
    validation: Source | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> tuple[PreTrainedModel, Report]:
    """Make a narrower student of `teacher`, train it on `data`, and score both on held-out rows.

    Args:
        teacher: folder, Hub id or a model; a model stays as it is.
        data: rows to train on: a `datasets.Dataset`, also a streamed one, or the name of files, a folder or a dataset.
        config: the student's sizes and its start. Or a target, such as `wid_hf.budget.Target(params="25%")`, for which
            sizes are found on rows of `data` within 15 minutes; `wid_hf.budget.SizeSearch` sets the time and the start.
        args: of the training. Batch size and seed are taken from there; other fields are where they are not at their
            defaults, and go before the defaults of `compress`. Training lasts `max_steps`; `output_dir` is not used.
        processing_class: the tokenizer; by default the one in the teacher's folder or repository.
        validation: held-out rows; by default a part of `data`.
        output: folder for the student, its tokenizer, its card and `wid_report.json`, as the command writes it. Without
            one nothing stays on disk: no checkpoints, and nothing of a run that is stopped.
        resume: go on with the same run in `<output>-work`, if there is one.
        overwrite: replace an `output` that holds only files of an earlier call.
        revision: of the teacher on the Hub.
        trust_remote_code: passed on to transformers.
        **settings: other fields of `CompressSettings`, such as `task`, `steps`, `batch_size` and `max_length`.

    Returns:
        The student, a stock model in evaluation mode, and what `wid_report.json` holds.

    Raises:
        WidError: one of its subclasses: something that was given is wrong, or the loss became NaN.
    """
    chosen = _settings(args, settings)
    asked = SizeSearch(config) if isinstance(config, Target) else config
    if isinstance(teacher, str):
        subject = Teacher(
            teacher,
            revision=revision,
            trust_remote_code=trust_remote_code,
            processing_class=processing_class,
            headless=may_be_headless(chosen.task),
        )
    else:
        subject = Teacher.of(teacher, processing_class)
    if output is None:
        student, report = _in_memory(subject, data, validation, asked, chosen)
    else:
        student, report = write_student(
            subject, data, output, asked, chosen, held_out=validation, resume=resume, overwrite=overwrite
        )
    return student.eval(), report


def _in_memory(
    teacher: Teacher, data: Source, held_out: Source | None, asked: WidConfig | SizeSearch, settings: CompressSettings
) -> tuple[PreTrainedModel, Report]:
    """Return student and report of a run that leaves nothing on disk."""
    with TemporaryDirectory(prefix="wid_hf-") as scratch:
        process = checked(training_arguments(settings, Path(scratch)))
        config, search = settled(teacher, asked, data, settings, held_out, leads=process.process_index == 0)
        job = Compression(teacher, config, settings, train=data, held_out=held_out)
        job.report = replace(job.report, search=search)
        job.read()
        job.begin(Path(scratch), saves=False)
        if process.process_index == 0:
            job.score_start()
        job.train()
        student = job.finish()
        if process.process_index == 0:
            job.score(student)
    return student, job.report


def _settings(args: TrainingArguments | None, given: dict[str, Any]) -> CompressSettings:
    """Return the settings of arguments and of names; a name goes before an argument."""
    for name in given:
        if name not in NAMES:
            nearest = get_close_matches(name, NAMES, n=1, cutoff=0)[0]
            raise ConfigError(
                f"compress has no argument {name}; the nearest is {nearest}. Other settings of the training are "
                "fields of args."
            )
    found: dict[str, Any] = {}
    if args is not None:
        told = stated(args) | {"per_device_train_batch_size": args.per_device_train_batch_size, "seed": args.seed}
        found = {OTHERWISE.get(name, name): value for name, value in told.items()}
    own = {name: value for name, value in found.items() if name in NAMES} | given
    return CompressSettings(**own, training={name: value for name, value in found.items() if name not in NAMES})
