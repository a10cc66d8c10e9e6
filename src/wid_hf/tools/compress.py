"""One call from a teacher's name to a student's folder.

Takes names of a teacher and of texts, gives a folder with the student, its tokenizer, its model card,
`wid_report.json`, for a calibrated start `calibration.png`, and for turned outputs `output_map.safetensors`.
Called by `wid-hf compress` and the demo.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
)

from ..adapter.fingerprint import weights_fingerprint
from ..adapter.get_wid_model import get_wid_model
from ..atomic_write import atomic_write
from ..config import WidConfig
from ..errors import OutputError, Stopped, TrainingError, WidWarning
from ..hub.cards import CARD_NAME, hub_id, student_card
from ..hub.model_size import model_size
from ..hub.own_files import why_not_ours
from ..hub.paths import expanded
from ..hub.sentence_transformers import save_sentence_modules
from ..inputs import TextInputs
from ..objectives import Objective, find_objective
from ..planning.student_plan import empty_student
from ..progressive.history import narrow_from, widths_over_steps
from ..progressive.schedule import WidSchedule
from ..rows.source import local_paths, source_names
from ..training.student_trainer import StudentTrainer
from ..training.trainer import WidTrainer
from .evaluation import latency
from .output_folder import OutputFolder, Place, Staging
from .recipe import CompressSettings, Recipe, recipe_of
from .reports.wid_report import Latency, Report
from .stops import StopAfterStep, Stops
from .teachers import load_teacher, load_tokenizer, longest_text, save_tokenizer, working_tokenizer
from .training_bar import TrainingBar
from .training_data import load_training_data

TIMED = 5  # forwards per model


def compress(
    teacher: str,
    train: str | Sequence[str],
    output: str | Path,
    config: WidConfig,
    settings: CompressSettings,
    *,
    recipe: Recipe | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Report:
    """Make a student of `teacher`, train it on `train`, and write it to `output`.

    A start that needs data is made from rows of `train`, masked as in training. What the teacher is for decides how the
    student trains and is scored (`wid_hf.objectives`): language models by their own loss; classifiers, taggers and
    headless encoders learn their teacher's outputs, without labels. Every recipe trains a
    student of the same shape on the same batches with the same masks. `output` appears only when it is complete. A
    trained student is saved first; anything that cannot be made afterwards (scores, a picture, the card) is missing,
    and a warning says so. A run that is stopped during training, by Ctrl-C, SIGTERM or an error, leaves its last state
    in `<output>-last-good`.

    Args:
        teacher: folder or Hub id.
        train: files, a folder or the name of a dataset, as for `rows.load_rows`.
        output: folder for the student, its tokenizer, its card and `wid_report.json`; apart from teacher and texts.
        config: the student's sizes and its start.
        settings: how to train.
        recipe: another way to make a student than WID, which decides the start itself.
        revision: of the teacher on the Hub.
        trust_remote_code: passed on to transformers.
        overwrite: replace an `output`, or a `<output>-last-good`, that holds only files of an earlier call.
        command: the command line, for the report.
        tell: is called with what a user should know before training begins.

    Returns:
        What `wid_report.json` holds.

    Raises:
        WidError: one of its subclasses; nothing is written at `output`.
        OutputError: `output` cannot be written; or, after the work, the complete student could not be moved there, and
            the error says where it is.
        TrainingError: the loss became NaN; the last good student is in `<output>-last-good`.
        Stopped: a signal ended the run; the message says what was kept.
    """
    teacher, train = expanded(teacher), source_names(train)
    settings = replace(settings, validation=_one_or_all(_names(settings.validation)))
    folder = _output_folder(output, overwrite, teacher, train, settings)
    recipe = recipe or recipe_of(config, settings)
    config = recipe.configured(config)
    if isinstance(config.schedule, WidSchedule):
        config.schedule.timeline(settings.steps)  # refuses a schedule that does not end within the steps
    model = load_teacher(teacher, revision=revision, trust_remote_code=trust_remote_code)
    kind = find_objective(model, settings.task)
    recipe.check_objective(kind, type(model).__name__)
    rates = recipe.learning_rates(kind, config, settings)
    original = load_tokenizer(teacher, revision=revision, trust_remote_code=trust_remote_code)
    objective = kind(model, TextInputs(working_tokenizer(original, model, masks=kind.masks)))
    settings = _fitting(settings, model, objective.inputs.processor)
    wid_model = get_wid_model(model, config)  # before texts are loaded: most refusals come from here
    report = Report(
        teacher=teacher,
        requested=config.requested,
        head_strategy=wid_model.base_model.settled.strategy,
        settled=str(wid_model.base_model.settled) or None,
        method=recipe.name,
        title=recipe.title,
        weights=recipe.weights,
        start="random weights" if recipe.weights == "random" else f"{config.init}, {config.selection}",
        objective=kind.name,
        sizes={"teacher": model_size(model)},
        settings=asdict(settings)
        | config.calibration_config.flat()
        | {"calibration_output": config.calibration_config.output}
        | {"train": _one_or_all(train), "method": recipe.name, "learning_rates": rates}
        | {"hub": {"teacher": hub_id(teacher), "revision": revision, "dataset": _dataset(train)}},
        seed=settings.seed,
        schedule=asdict(config.schedule) if isinstance(config.schedule, WidSchedule) else None,
        fingerprints={"teacher": weights_fingerprint(model)},  # before training, which may change the teacher's tensors
        command=command,
    )
    if not wid_model.base_model.is_wide:  # the narrow model is made only later
        folder.check_space(model_size(empty_student(model, wid_model.base_model.model.config)).bytes)
    data = load_training_data(train, objective, settings, config.calibration_config.samples)
    tell("\n".join(data.words()))

    def save(student: PreTrainedModel, report: Report, at: Path) -> None:
        student.save_pretrained(at)
        save_tokenizer(original, at, teacher, revision=revision)
        width = getattr(student.config.get_text_config(), "hidden_size", None)
        save_sentence_modules(teacher, at, width, revision=revision)
        report.save(at)

    with Stops() as stops, folder.staging() as staging:
        trainer = recipe.trainer(
            wid_model,
            objective,
            rates,
            _arguments(settings, staging.scratch),
            {"train_dataset": data.train, "data_collator": objective.collator},
        )
        trainer.pop_callback(ProgressCallback)
        for callback in (TrainingBar(), StopAfterStep(stops)):
            trainer.add_callback(callback)
        scorer = _Scorer(objective, data.held_out, settings)
        report = replace(
            report,
            calibration=wid_model.base_model.calibration,
            outputs=wid_model.base_model.outputs if recipe.weights != "random" else None,
            scores={"teacher": scorer.score(model)}
            | ({"start": scorer.score(trainer.model)} if settings.steps else {}),
            latency=Latency({"teacher": scorer.latency(model)}, scorer.timed),
        )
        with stops.later():
            began = time.monotonic()
            ended = _train(trainer, stops) if settings.steps else None
            report = replace(report, seconds=time.monotonic() - began if settings.steps else 0.0, rows=data.record())
            if ended is not None:
                where = _keep(staging, folder.last_good, trainer, report, ended, save)
                raise _ended_early(ended, where) from ended
            student = _stock(trainer)
            report = _with_training(report, trainer, student)
            complete = staging.complete(folder.output, partial(save, student, report))
        report, stop = _with_scores(report, complete, student, scorer, stops)
        with stops.later():
            _write_report_and_card(report, complete, folder.output.path.name)
            staging.place(folder.output)
    if stop is not None or stops.pending is not None:
        number = stops.pending if stop is None or stops.pending is not None else stop.signal
        raise Stopped(number or 0, f"Training had ended: the student is complete, in {folder.output.path}.")
    return report


def _with_scores(
    report: Report, complete: Path, student: PreTrainedModel, scorer: _Scorer, stops: Stops
) -> tuple[Report, Stopped | None]:
    """Score a saved student, draw the pictures, and return the report; a signal ends this early."""
    if stops.pending is not None:
        return report, None
    try:
        with _optional("The student's scores"):
            score = scorer.score(student)
            report = replace(report, scores={"start": score} | report.scores | {"student": score})
            assert report.latency is not None
            seconds = report.latency.seconds | {"student": scorer.latency(student)}
            report = replace(report, latency=replace(report.latency, seconds=seconds))
        with _optional("The pictures"):
            report.draw(complete)
    except Stopped as stop:
        return report, stop
    return report, None


def _write_report_and_card(report: Report, complete: Path, name: str) -> None:
    """Write report and card into the folder of a student that is saved already, with a first report."""
    with _optional("The report's scores"):
        report.save(complete)
    with _optional("The model card"), atomic_write(complete / CARD_NAME) as unfinished:
        student_card(complete, name).save(unfinished)
    with _optional("The report's list of files"):
        report.save(complete)


def _output_folder(
    output: str | Path, overwrite: bool, teacher: str, train: Sequence[str], settings: CompressSettings
) -> OutputFolder:
    """Return the place of the student, apart from all that the run reads."""
    rows = {"the training rows": train, "the validation rows": _names(settings.validation)}
    sources = {what: local_paths(names) for what, names in rows.items() if names}
    return OutputFolder(
        output, overwrite=overwrite, why_not_ours=why_not_ours, sources={"the teacher": [Path(teacher)], **sources}
    )


def _names(source: str | Sequence[str] | None) -> list[str]:
    return [] if source is None else source_names(source)


def _one_or_all(names: list[str]) -> str | list[str] | None:
    """Return the only name, or all; None if there is none."""
    return names[0] if len(names) == 1 else names or None


def _dataset(names: Sequence[str]) -> str | None:
    """Return the Hub id of a named dataset, None for files and folders."""
    return None if local_paths(names) else hub_id(names[0])


def _fitting(
    settings: CompressSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> CompressSettings:
    """Return `settings` with texts no longer than the model has positions for; warn if the user gave a length."""
    longest = longest_text(model, tokenizer, settings.max_length)
    if longest < settings.max_length != CompressSettings.max_length:
        warnings.warn(
            f"max_length={settings.max_length} is more than {type(model).__name__} has positions for: texts are cut "
            f"after {longest} tokens.",
            WidWarning,
            stacklevel=3,
        )
    return replace(settings, max_length=longest)


def _train(trainer: StudentTrainer, stops: Stops) -> BaseException | None:
    """Train; return what ended the training before its last step, None if nothing did."""
    try:
        trainer.train()
    except Stopped:  # by a second signal
        raise
    except BaseException as error:
        return error
    if stops.pending is not None and trainer.state.global_step < trainer.state.max_steps:
        return Stopped(stops.pending)
    return None


def _keep(
    staging: Staging,
    place: Place,
    trainer: StudentTrainer,
    report: Report,
    ended: BaseException,
    save: Callable[[PreTrainedModel, Report, Path], None],
) -> str:
    """Save the current student when training has ended early; return in words where it is."""
    if not (trainer.state.global_step or isinstance(ended, TrainingError | Stopped)):
        return "No step was done, so nothing was kept."
    try:
        student = _stock(trainer, force=True)
        report = _with_training(report, trainer, student)
        why = f"{str(ended).strip() or type(ended).__name__} ({report.steps} of {trainer.state.max_steps} steps done)"
        staging.complete(place, partial(save, student, replace(report, stopped=why)))
        staging.place(place)
    except OutputError as error:
        return str(error)
    except Exception as error:  # the device may be out of memory, the model half built
        return f"The student could not be saved: {error}."
    return f"The student after {report.steps} steps is in {place.path}."


def _ended_early(ended: BaseException, where: str) -> BaseException:
    """Return the error to raise for a training that ended early: of the same class, with the student's place."""
    if isinstance(ended, TrainingError):
        return TrainingError(f"{ended} {where}")
    if isinstance(ended, Stopped):
        return Stopped(ended.signal, where)
    warnings.warn(f"Training ended with an error. {where}", WidWarning, stacklevel=3)
    return ended


def _with_training(report: Report, trainer: StudentTrainer, student: PreTrainedModel) -> Report:
    """Return `report` with the figures of training and the student, but without scores."""
    state = trainer.state
    return replace(
        report,
        sizes=report.sizes | {"student": model_size(student)},
        fingerprints=report.fingerprints | {"student": weights_fingerprint(student)},
        steps=trainer.weights_of_step,
        tokens=int(state.num_input_tokens_seen),
        losses=[(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry],
        widths=widths_over_steps(state.log_history),
        narrow_from=narrow_from(state.log_history),
    )


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """Let a block fail with a warning: its result is less important than a trained student."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        warnings.warn(f"{what} could not be made: {reason}. The student is complete.", WidWarning, stacklevel=4)


class _Scorer:
    """Scores teacher, start and student on the same held-out batches."""

    def __init__(self, objective: Objective, held_out: Dataset, settings: CompressSettings) -> None:
        self._objective = objective
        self.batches = objective.scored(held_out, settings.batch_size, settings.seed)
        self._wanted = objective.wanted(self.batches)

    def score(self, model: Any) -> dict[str, float]:
        """Return the objective's figures."""
        return self._objective.score(model, self.batches, self._wanted)

    @property
    def timed(self) -> tuple[int, int]:
        """Texts and tokens per text of the batch that `latency` runs."""
        texts, tokens = self.batches[0]["input_ids"].shape
        return texts, tokens

    def latency(self, model: Any) -> float:
        """Return the median seconds of forwards on the first batch."""
        inputs = {name: tensor for name, tensor in self.batches[0].items() if name != "labels"}
        return latency(model, inputs, repeats=TIMED)


def _arguments(settings: CompressSettings, scratch: Path) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that all recipes share."""
    return {
        "output_dir": str(scratch),
        "max_steps": max(settings.steps, 1),
        "per_device_train_batch_size": settings.batch_size,
        "weight_decay": 0.01,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "linear",
        "logging_steps": max(1, settings.steps // 50),
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "include_num_input_tokens_seen": "non_padding",
        "seed": settings.seed,
        "data_seed": settings.seed,
    }


def _stock(trainer: StudentTrainer, force: bool = False) -> PreTrainedModel:
    """Return the student as a stock model; `force` merges one that is still wide."""
    return trainer.model.merge_and_unload(force=force) if isinstance(trainer, WidTrainer) else trainer.student
