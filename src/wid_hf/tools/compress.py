"""One call from a teacher's name to a student's folder.

Takes names of a teacher and of rows, gives a folder with the student, its tokenizer or processor, its model card,
`wid_report.json`, for a calibrated start `calibration.png`, and for turned outputs `output_map.safetensors`.
Called by `wid-hf compress` and the demo.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, TrainerCallback

from ..atomic_write import atomic_write
from ..budget import SizeSearch
from ..config import WidConfig
from ..errors import OutputError, Stopped, TrainingError, WidWarning
from ..hub.cards import CARD_NAME, student_card
from ..hub.own_files import why_not_ours
from ..objectives.registry import may_be_headless
from ..rows.source import local_paths, source_names
from ..sentence_models import save_sentence_modules
from .compression import Compression, training_arguments
from .find_sizes import settled
from .output_folder import OutputFolder, Place, Staging
from .recipe import CompressSettings, Recipe
from .reports.wid_report import Report
from .smaller_vocabulary import no_warning_of_other_tables
from .stops import StopAfterStep, Stops
from .teachers import Teacher
from .training_data import Source
from .training_settings import checked
from .work_folder import LOGS, START, NoteSeconds, WorkFolder, load_start

Tell = Callable[[str], None]


def compress(
    teacher: str,
    train: str | Sequence[str],
    output: str | Path,
    config: WidConfig | SizeSearch,
    settings: CompressSettings,
    *,
    recipe: Recipe | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    run: Mapping[str, Any] | None = None,
    tell: Tell = lambda words: None,
) -> Report:
    """Make a student of `teacher`, train it on `train`, and write it to `output`.

    A start that needs data is made from rows of `train`, masked as in training. What the teacher is for decides how the
    student trains and is scored (`wid_hf.objectives`): language models by their own loss; classifiers, taggers and
    headless encoders learn their teacher's outputs, without labels. Every recipe trains a
    student of the same shape on the same batches with the same masks.

    Args:
        teacher: folder or Hub id.
        train: files, a folder or the name of a dataset, as for `rows.load_rows`.
        output: folder for the student, its tokenizer, its card and `wid_report.json`; apart from teacher and texts.
        config: the student's sizes and its start, or a target that sizes are found for on rows of `train`.
        settings: how to train.
        recipe: another way to make a student than WID, which decides the start itself.
        revision: of the teacher on the Hub.
        trust_remote_code: passed on to transformers.
        overwrite: see `write_student`.
        resume: see `write_student`.
        command: the command line, for the report.
        run: all options of the command by name, for the report.
        tell: is called with what a user should know before training begins.

    Returns:
        What `wid_report.json` holds.

    Raises:
        WidError: see `write_student`.
    """
    subject = Teacher(
        teacher,
        revision=revision,
        trust_remote_code=trust_remote_code,
        headless=may_be_headless(settings.task),
    )
    told = {"command": command, "run": run}
    more: dict[str, Any] = {"recipe": recipe, "overwrite": overwrite, "resume": resume, "told": told, "tell": tell}
    return write_student(subject, train, output, config, settings, **more)[1]


def write_student(
    teacher: Teacher,
    train: Source,
    output: str | Path,
    config: WidConfig | SizeSearch,
    settings: CompressSettings,
    *,
    held_out: Source | None = None,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    resume: bool = False,
    found: dict[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
    tell: Tell = lambda words: None,
) -> tuple[PreTrainedModel, Report]:
    """Make a student of `teacher` and write it to `output`.

    `output` appears only when it is complete. A trained student is saved first; anything that cannot be made afterwards
    (scores, a picture, the card) is missing, and a warning says so. A run that is stopped during training, by Ctrl-C,
    SIGTERM or an error, leaves its last state in `<output>-last-good`. One that is stopped or killed leaves its start
    and its last checkpoint in `<output>-work`, which is deleted when the student is complete. Of several processes
    (`torchrun`, `accelerate launch`) only the first one scores, writes and prints.

    Args:
        teacher: the teacher.
        train: rows, or their name.
        output: folder for the student, its tokenizer, its card and `wid_report.json`; apart from teacher and texts.
        config: the student's sizes and its start, or a target; a run that goes on has the sizes that were found before.
        settings: how to train.
        held_out: held-out rows, if `settings` do not name any.
        recipe: another way to make a student than WID, which decides the start itself.
        overwrite: replace an `output`, or a `<output>-last-good`, that holds only files of an earlier call, and begin
            again where `<output>-work` holds a run.
        resume: go on with the same run in `<output>-work`, if there is one.
        found: the record of sizes that were found for this target already.
        told: `command` and `run` of the report.
        tell: is called with what a user should know before training begins.

    Returns:
        The student, and what `wid_report.json` holds.

    Raises:
        WidError: one of its subclasses; nothing is written at `output`.
        OutputError: `output` cannot be written, or `<output>-work` holds another run; or, after the work, the complete
            student could not be moved to `output`, and the error says where it is.
        TrainingError: the loss became NaN; the last good student is in `<output>-last-good`.
        Stopped: a signal ended the run; the message says what was kept.
    """
    processes = checked(training_arguments(settings, Path(output)))
    folder = work = None
    if processes.process_index == 0:
        more: dict[str, Any] = {"held_out": held_out, "overwrite": overwrite, "resume": resume}
        folder, work = folders(teacher.name, train, output, settings, **more)
        if isinstance(config, SizeSearch):
            found = work.search(config) or found
    request, search = settled(teacher, config, train, settings, held_out, leads=work is not None, known=found)
    if search is not None and work is not None:
        tell(search["reason"])
    job = Compression(teacher, request, settings, recipe, train=train, held_out=held_out)
    job.report = replace(job.report, search=search, **(told or {}))
    if folder is not None:
        folder.check_space(job.bytes_to_write)
        tell(job.words())
    job.read()
    if folder is None or work is None:
        student = _train_along(job)
    else:
        tell("\n".join(job.data.words()))
        student = _lead(job, folder, work, processes.world_size)
    return student, job.report


def folders(
    teacher: str,
    train: Source,
    output: str | Path,
    settings: CompressSettings,
    *,
    held_out: Source | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> tuple[OutputFolder, WorkFolder]:
    """Return where a run writes, or refuse it; see `write_student`.

    Raises:
        OutputError: `output` cannot be written, or `<output>-work` holds another run.
    """
    rows = {"the training rows": train, "the validation rows": settings.validation if held_out is None else held_out}
    sources = {"the teacher": [Path(teacher)]} | {what: _paths(source) for what, source in rows.items()}
    folder = OutputFolder(output, overwrite=overwrite, why_not_ours=why_not_ours, sources=sources, resume=resume)
    return folder, WorkFolder(folder.work, resume=resume, overwrite=overwrite)


@dataclass(frozen=True)
class _Beginning:
    """What the first process of a run tells the others.

    Attributes:
        folder: of the trainer.
        start: folder of an adapter at its start, if an earlier run has made it.
        checkpoint: from which training goes on.
    """

    folder: Path
    start: Path | None = None
    checkpoint: Path | None = None


def _lead(job: Compression, folder: OutputFolder, work: WorkFolder, processes: int) -> PreTrainedModel:
    """Make the student in the process that scores and writes."""

    def save(student: PreTrainedModel, report: Report, at: Path) -> None:
        student.save_pretrained(at)
        job.teacher.save_processor(at)
        save_sentence_modules(job.teacher.name, student, at, revision=job.teacher.revision)
        if (work.path / LOGS).is_dir():
            shutil.copytree(work.path / LOGS, at / LOGS)  # the Hub shows them from there
        report.save(at)

    with Stops() as stops, folder.staging() as staging, work.opened(job.decides | {"processes": processes}):
        if job.report.search is not None:
            work.keep_search(job.report.search)
        start = work.start
        checkpoint = work.checkpoint(processes) if start is not None else None
        before = work.seconds_until(checkpoint)
        beginning = _Beginning(work.path, work.path / START if start is not None else None, checkpoint)
        _begin(job, beginning, StopAfterStep(stops), NoteSeconds(work, before))
        _score_start(job, work)
        with stops.later():
            ended = _train(job, stops, checkpoint, before)
            if ended is not None:
                where = _keep(staging, folder.last_good, job, ended, save)
                if _would_come_again(ended, job):
                    work.remove()
                raise _ended_early(ended, where, resumable=work.start is not None) from ended
            student = job.finish()
            complete = staging.complete(folder.output, partial(save, student, job.report))
            work.remove()  # the student is never deleted from now on
        stop = _score(job, complete, student, stops)
        with stops.later():
            _write_report_and_card(job.report, complete, folder.output.path.name)
            staging.place(folder.output)
            if start is not None:
                folder.discard_last_good()
    if stop is not None or stops.pending is not None:
        number = stops.pending or (stop.signal if stop is not None else 0)
        raise Stopped(number, f"Training had ended: the student is complete, in {folder.output.path}.")
    return student


def _train_along(job: Compression) -> PreTrainedModel:
    """Train with the process that leads; return the same student."""
    with Stops() as stops:
        beginning = _begin(job, None, StopAfterStep(stops))
        with stops.later():
            ended = _train(job, stops, beginning.checkpoint)
    if ended is not None:
        raise ended
    return job.finish()


def _begin(job: Compression, beginning: _Beginning | None, *callbacks: TrainerCallback) -> _Beginning:
    """Make the trainer of the student at its start, from what the process that leads knows; return that."""
    (shared,) = broadcast_object_list([beginning])
    if shared.start is not None:
        load_start(job.wid_model, shared.start)
    job.begin(shared.folder, callbacks)
    return shared


def _score_start(job: Compression, work: WorkFolder) -> None:
    """Score teacher and start, or take what an earlier run has found; keep it for a later one."""
    if work.start is not None:
        job.take_start(work.start)
        return
    found = job.score_start()
    if job.settings.steps:  # otherwise the student is complete at once
        with no_warning_of_other_tables():
            work.keep_start(job.wid_model, found)


def _score(job: Compression, complete: Path, student: PreTrainedModel, stops: Stops) -> Stopped | None:
    """Score a saved student and draw the pictures; a signal ends this early."""
    if stops.pending is not None:
        return None
    try:
        with _optional("The student's scores"):
            job.score(student)
        with _optional("The pictures"):
            job.report.draw(complete)
    except Stopped as stop:
        return stop
    return None


def _write_report_and_card(report: Report, complete: Path, name: str) -> None:
    """Write report and card into the folder of a student that is saved already, with a first report."""
    with _optional("The report's scores"):
        report.save(complete)
    with _optional("The model card"), atomic_write(complete / CARD_NAME) as unfinished:
        student_card(complete, name).save(unfinished)
    with _optional("The report's list of files"):
        report.save(complete)


def _paths(source: Source | None) -> list[Path]:
    """Return the files and folders that a source names."""
    if source is None or isinstance(source, Dataset | IterableDataset):
        return []
    return local_paths(source_names(source))


def _train(job: Compression, stops: Stops, checkpoint: Path | None, before: float = 0.0) -> BaseException | None:
    """Train; return what ended the training before its last step, None if nothing did."""
    try:
        job.train(checkpoint, before)
    except Stopped:  # by a second signal
        raise
    except BaseException as error:
        return error
    state = job.trainer.state
    if job.settings.steps and stops.pending is not None and state.global_step < state.max_steps:
        return Stopped(stops.pending)
    return None


def _keep(
    staging: Staging,
    place: Place,
    job: Compression,
    ended: BaseException,
    save: Callable[[PreTrainedModel, Report, Path], None],
) -> str:
    """Save the current student when training has ended early; return in words where it is."""
    state = job.trainer.state
    if not (state.global_step or isinstance(ended, TrainingError | Stopped)):
        return "No step was done, so nothing was kept."
    try:
        student = job.finish(force=True)
        steps = job.report.steps
        if isinstance(ended, TrainingError) and not all(bool(p.isfinite().all()) for p in student.parameters()):
            return f"Its weights after {steps} steps are not finite, so nothing was kept."
        why = f"{str(ended).strip() or type(ended).__name__} ({steps} of {state.max_steps} steps done)"
        staging.complete(place, partial(save, student, replace(job.report, stopped=why)))
        staging.place(place)
    except OutputError as error:
        return str(error)
    except Exception as error:  # the device may be out of memory, the model half built
        return f"The student could not be saved: {error}."
    return f"The student after {steps} steps is in {place.path}."


def _would_come_again(ended: BaseException, job: Compression) -> bool:
    """Return whether a run that goes on would end as this one did: at NaN, or in its first step."""
    return isinstance(ended, TrainingError) or not (job.trainer.state.global_step or isinstance(ended, Stopped))


def _ended_early(ended: BaseException, where: str, *, resumable: bool) -> BaseException:
    """Return the error to raise for a training that ended early: of the same class, with the student's place."""
    where = f"{where} Pass resume=True to go on." if resumable else where
    if isinstance(ended, TrainingError):
        return TrainingError(f"{ended} {where}")
    if isinstance(ended, Stopped):
        return Stopped(ended.signal, where)
    warnings.warn(f"Training ended with an error. {where}", WidWarning, stacklevel=3)
    return ended


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """Let a block fail with a warning: its result is less important than a trained student."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        warnings.warn(f"{what} could not be made: {reason}. The student is complete.", WidWarning, stacklevel=4)
