"""One run in memory: the student of a teacher is planned, made, trained and scored.

Takes a teacher, rows, sizes and settings; gives the student and the figures of a report. Writes nothing but what a
trainer writes to its folder. Called by `compress` for a folder, and by `wid_hf.compress`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ..adapter.fingerprint import weights_fingerprint
from ..adapter.get_wid_model import get_wid_model
from ..calibration import Calibration
from ..config import WidConfig
from ..errors import WidWarning
from ..hub.cards import hub_id
from ..hub.model_size import model_size
from ..inputs import TextInputs, find_inputs
from ..objectives import Objective, find_objective
from ..objectives.logits import inputs_of
from ..objectives.registry import AUTO
from ..planning.empty_student import empty_student
from ..progressive.history import narrow_from, widths_over_steps
from ..progressive.schedule import WidSchedule
from ..rows.source import local_paths, source_names
from ..training.student_trainer import StudentTrainer
from ..training.trainer import WidTrainer
from .evaluation import latency
from .recipe import CompressSettings, Recipe, recipe_of
from .reports.wid_report import Latency, Report
from .smaller_vocabulary import SmallerVocabulary, no_warning_of_other_tables, smaller_vocabulary
from .teachers import Teacher, longest_text, working_processor
from .training_bar import TrainingBar
from .training_data import Source, TrainingData, load_training_data, said, scored_features

TIMED = 5  # forwards per model
STATES = 3  # numbers for each weight that trains in a checkpoint: itself and two of AdamW


class Compression:
    """A student of one teacher, step by step: `read`, `begin`, `train`, `finish`, `score`.

    Args:
        teacher: the teacher.
        config: the student's sizes and its start.
        settings: how to train.
        recipe: how the student is made; by default WID.
        train: rows to train on, or their name.
        held_out: rows to score on; by default those that `settings` name, or a part of `train`.

    Attributes:
        config: the same with the start that the recipe decides.
        settings: the same with rows no longer than the teacher takes.
        wid_model: the student, folded from its teacher.
        teacher: the teacher, with a smaller vocabulary if there is one, and the processor for it.
        vocabulary: what became of its tokens; None if they stay.
        report: what is known so far.
        data: rows to train and to score on, after `read`.
        trainer: after `begin`.

    Raises:
        WidError: one of its subclasses: the student cannot be made or trained as asked.
    """

    trainer: StudentTrainer
    data: TrainingData

    def __init__(
        self,
        teacher: Teacher,
        config: WidConfig,
        settings: CompressSettings,
        recipe: Recipe | None = None,
        *,
        train: Source,
        held_out: Source | None = None,
    ) -> None:
        self._train_source = train
        self._held_out_source = settings.validation if held_out is None else held_out
        self._recipe = recipe or recipe_of(config, settings)
        self.config = self._recipe.configured(config)
        if isinstance(self.config.schedule, WidSchedule):
            self.config.schedule.timeline(settings.steps)  # refuses a schedule that does not end within the steps
        whole = teacher.model  # loaded only now
        kind = find_objective(whole, settings.task)
        self._recipe.check_objective(kind, type(whole).__name__)
        self._rates = self._recipe.learning_rates(kind, self.config, settings)
        if self._rates.get("teacher"):
            teacher.own_weights()
        self.objective = _objective(kind, whole, teacher.processor)
        self.settings = replace(settings, max_length=fitting_length(self.objective, settings.max_length))
        self.config = self.objective.configured(self.config)
        self.vocabulary: SmallerVocabulary | None = None
        if self.config.vocabulary is not None:
            self.vocabulary = smaller_vocabulary(teacher, self.objective, self.config.vocabulary, train, self.settings)
            self.config = self.vocabulary.settled(self.config)
        self.wid_model = get_wid_model(whole, self.config)  # before rows are read: most refusals come from here
        self.teacher, self._model = teacher, whole
        self._with_all_tokens: Objective | None = None
        if self.vocabulary is not None and not self.vocabulary.all_stay:
            self._with_all_tokens = self.objective
            self._model = self.wid_model.base_model.whole_teacher.eval()
            self.teacher = teacher.replaced(self._model, self.vocabulary.processor)
            self.objective = _objective(kind, self._model, self.vocabulary.processor)
        self._recipe = self._recipe.decided(kind, self.wid_model)
        self.report = self._planned(teacher)

    def _planned(self, teacher: Teacher) -> Report:
        """Return the report of what is decided before any work."""
        train, held_out = (_named(source) for source in (self._train_source, self._held_out_source))
        dataset = _dataset(self._train_source)
        config, settings, recipe, tuner = self.config, self.settings, self._recipe, self.wid_model.base_model
        return Report(
            teacher=teacher.name,
            requested=config.requested,
            head_strategy=tuner.settled.strategy,
            settled=str(tuner.settled) or None,
            method=recipe.name,
            title=recipe.title,
            weights=recipe.weights,
            start="random weights" if recipe.weights == "random" else f"{config.init}, {config.selection}",
            objective=self.objective.name,
            unit=self.objective.inputs.unit,
            numbers=self.objective.inputs.numbers,
            sizes={"teacher": model_size(teacher.model)},
            settings=asdict(settings)
            | config.calibration_config.flat()
            | {"calibration_output": config.calibration_config.output}
            | {"train": train, "validation": held_out, "method": recipe.name, "learning_rates": self._rates}
            | {"compared": recipe.compared}
            | {"hub": {"teacher": hub_id(teacher.name), "revision": teacher.revision, "dataset": dataset}},
            seed=settings.seed,
            vocabulary=str(self.vocabulary) if self.vocabulary is not None else None,
            schedule=asdict(config.schedule) if isinstance(config.schedule, WidSchedule) else None,
            fingerprints={"teacher": weights_fingerprint(self._model)},  # training may change the teacher's tensors
        )

    @property
    def bytes_to_write(self) -> int:
        """About how much room the run takes: the student's weights, its start and two checkpoints at a time."""
        tuner, settings = self.wid_model.base_model, self.settings
        if tuner.is_wide:  # the narrow model is made only later
            return 0
        student = model_size(empty_student(self._model, tuner.model.config)).bytes
        arguments = training_arguments(settings, Path())
        if settings.steps <= arguments["save_steps"] or arguments.get("save_strategy") == "no":
            return student
        own = sum(p.nbytes for p in self.wid_model.parameters()) - self.report.sizes["teacher"].bytes
        trained = {"student": student, "compactors": own, "teacher": self.report.sizes["teacher"].bytes}
        weights = sum(trained[kind] for kind, rate in self._rates.items() if rate)
        return student + (1 + 2 * STATES) * weights

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides what comes out of this run, as far as it is known."""
        told = self.report
        return {
            "teacher": told.fingerprints["teacher"],
            "sizes": told.requested,
            "head_strategy": told.head_strategy,
            "method": told.method,
            "start": told.start,
            "schedule": told.schedule,
            "settings": {name: value for name, value in told.settings.items() if name != "hub"},
            "rows": {source: found["read"] for source, found in self.data.record().items()},
            **{f"the content of {source}": digest for source, digest in self.data.digests().items()},
        }

    def words(self) -> str:
        """Return what the teacher is taken for, and how the student trains: what a user may want otherwise."""
        guessed = ", found from its class" if self.settings.task == AUTO else ""
        told = [f"Method: {self.report.title}"]
        if not self.settings.steps:
            told.append("no training")
        else:
            if self._recipe.compared:
                told.append(f"distillation: {', '.join(self._recipe.compared)}")
            told.append(f"learning rates: {', '.join(f'{name} {rate:g}' for name, rate in self._rates.items())}")
        task = f"{self.objective.one} (task={self.objective.name}{guessed})"
        tokens = f" {self.vocabulary}" if self.vocabulary is not None else ""
        return f"{self.report.teacher}: {task}. {'; '.join(told)}.{tokens}"

    def read(self) -> None:
        """Read the rows to train and to score on.

        Raises:
            DataError: they cannot be used.
        """
        samples = self.config.calibration_config.samples
        self.data = load_training_data(
            self._train_source, self.objective, self.settings, samples, self._held_out_source
        )

    def begin(self, folder: Path, callbacks: Sequence[TrainerCallback] = (), *, saves: bool = True) -> None:
        """Make the trainer of the student at its start; calibrate, if the start was not loaded.

        Args:
            folder: of the trainer.
            callbacks: added to the trainer.
            saves: whether there are checkpoints.
        """
        arguments = training_arguments(self.settings, folder) | ({} if saves else {"save_strategy": "no"})
        if self.objective.inputs.numbers != "tokens":
            arguments["include_num_input_tokens_seen"] = "all"  # values of images have no padding
        self.trainer = self._recipe.trainer(
            self.wid_model,
            self.objective,
            self._rates,
            arguments,
            {
                "train_dataset": self.data.train,
                "data_collator": self.objective.collator,
                "keep_last_good": self.settings.keep_last_good,
            },
        )
        self.trainer.pop_callback(ProgressCallback)
        for callback in (TrainingBar(), *callbacks, _NoLastCheckpoint()):
            self.trainer.add_callback(callback)
        tuner = self.wid_model.base_model
        self.report = replace(
            self.report,
            calibration=tuner.calibration,
            outputs=tuner.outputs if self._recipe.weights != "random" else None,
        )

    def score_start(self) -> dict[str, Any]:
        """Score teacher and start; return what was found until now, as plain values for JSON."""
        self._scorer = _Scorer(self.objective, self.data.held_out, self.settings)
        scores = {"teacher": self._scorer.score(self._model)}
        if self.settings.steps:
            scores["start"] = self._scorer.score(self.trainer.model)
        with_all_tokens = self._score_with_all_tokens()
        timed = Latency({"teacher": self._scorer.latency(self._model)}, self._scorer.timed)
        self.report = replace(self.report, scores=scores, teacher_with_all_tokens=with_all_tokens, latency=timed)
        calibration = self.report.calibration
        return {
            "scores": scores,
            "teacher_with_all_tokens": with_all_tokens,
            "latency": asdict(timed),
            "calibration": calibration.to_dict() if calibration is not None else None,
        }

    def _score_with_all_tokens(self) -> dict[str, float] | None:
        """Return the figures of the teacher as it is on the same rows, in its own tokens; None if no token goes."""
        if self._with_all_tokens is None:
            return None
        objective = self._with_all_tokens
        features = scored_features(self.data.held_out_rows, objective, self.settings)
        batches = objective.scored(features, self.settings.batch_size, self.settings.seed)
        return objective.score(objective.teacher, batches, None)

    def take_start(self, found: Mapping[str, Any]) -> None:
        """Take over what `score_start` returned in an earlier process."""
        self._scorer = _Scorer(self.objective, self.data.held_out, self.settings)
        calibration = found["calibration"]
        self.report = replace(
            self.report,
            scores=found["scores"],
            teacher_with_all_tokens=found.get("teacher_with_all_tokens"),
            latency=Latency(found["latency"]["seconds"], tuple(found["latency"]["batch"])),
            calibration=Calibration.from_dict(calibration) if calibration is not None else None,
        )

    def train(self, checkpoint: Path | None = None, before: float = 0.0) -> None:
        """Train, from a checkpoint if there is one.

        Args:
            checkpoint: a whole one of the same run.
            before: seconds of training that led to it.
        """
        self.report = replace(self.report, rows=self.data.record())
        if not self.settings.steps:
            return
        began = time.monotonic()
        set_seed(self.settings.seed)  # the start may have been made now or earlier
        try:
            with no_warning_of_other_tables():
                self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        finally:
            seconds = before + time.monotonic() - began
            self.report = replace(self.report, seconds=seconds, rows=self.data.record())

    def finish(self, *, force: bool = False) -> PreTrainedModel:
        """Return the student as a stock model, with the figures of training in the report.

        Args:
            force: merge a student that is still wide.
        """
        merges = isinstance(self.trainer, WidTrainer)
        student = self.trainer.model.merge_and_unload(force=force) if merges else self.trainer.student
        state, report = self.trainer.state, self.report
        self.report = replace(
            report,
            sizes=report.sizes | {"student": model_size(student)},
            fingerprints=report.fingerprints | {"student": weights_fingerprint(student)},
            steps=self.trainer.weights_of_step,
            tokens=int(state.num_input_tokens_seen),
            losses=[(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry],
            widths=widths_over_steps(state.log_history),
            narrow_from=narrow_from(state.log_history),
        )
        return student

    def score(self, student: PreTrainedModel) -> None:
        """Score the student; without training it is the start as well."""
        score, report = self._scorer.score(student), self.report
        assert report.latency is not None
        seconds = report.latency.seconds | {"student": self._scorer.latency(student)}
        self.report = replace(
            report,
            scores={**report.scores, "start": report.scores.get("start", score), "student": score},
            latency=replace(report.latency, seconds=seconds),
        )


def find_task(teacher: PreTrainedModel, processing_class: Any, task: str = AUTO) -> Objective:
    """Return what a teacher is for: the collator, the loss and the figures by which `compress` trains and scores it.

    For `WidTrainer(task=...)`. `features` of the result makes rows to train and to evaluate on.

    Args:
        teacher: the model, in evaluation mode.
        processing_class: its tokenizer, which is not changed, its image processor or its processor of sounds.
        task: name of an objective, or "auto" for the one that fits the teacher's class.

    Raises:
        ConfigError: `task` is unknown.
        TeacherError: no objective fits the teacher, or `task` does not, or it lacks a token that the task needs.
    """
    return _objective(find_objective(teacher, task), teacher, processing_class)


def _objective(kind: type[Objective], teacher: PreTrainedModel, processing_class: Any) -> Objective:
    return kind(teacher, find_inputs(teacher, working_processor(processing_class, teacher, masks=kind.masks)))


class _NoLastCheckpoint(TrainerCallback):
    """Leaves out the checkpoint after the last step: the student itself is saved then."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


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
    def timed(self) -> tuple[int, ...]:
        """Rows, and tokens or other numbers per row, of the batch that `latency` runs; choices are rows."""
        inputs = self._objective.inputs
        size = self.batches[0][inputs.argument].shape
        return (size[:-1].numel(), size[-1]) if inputs.numbers == "tokens" else tuple(size)

    def latency(self, model: Any) -> float:
        """Return the median seconds of forwards on the first batch."""
        return latency(model, inputs_of(self.batches[0]), repeats=TIMED)


def training_arguments(settings: CompressSettings, folder: Path) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that all recipes share.

    Args:
        settings: how to train.
        folder: of the trainer: it holds checkpoints.
    """
    save_steps = min(max(settings.steps // 10, 10), 500)
    return {
        "output_dir": str(folder),
        "max_steps": max(settings.steps, 1),
        "per_device_train_batch_size": settings.batch_size,
        "weight_decay": 0.01,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "linear",
        "logging_steps": max(1, settings.steps // 50),
        "save_steps": save_steps,
        "save_total_limit": 1,  # it is deleted when the next one is whole
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # several processes on CPUs do not find each other without it
        "include_num_input_tokens_seen": "non_padding",
        "seed": settings.seed,
        "data_seed": settings.seed,
        **settings.training,
    }


def _named(source: Source | None) -> str | list[str] | None:
    """Return what reports call a source: its only name, or all."""
    if source is None or isinstance(source, Dataset | IterableDataset):
        return None if source is None else said(source)
    names = source_names(source)
    return names[0] if len(names) == 1 else names


def _dataset(source: Source) -> str | None:
    """Return the Hub id of a named dataset, None for files, folders and rows."""
    if isinstance(source, Dataset | IterableDataset):
        return None
    names = source_names(source)
    return None if local_paths(names) else hub_id(names[0])


def fitting_length(objective: Objective, max_length: int) -> int:
    """Return `max_length`, or less if the model of `objective` has fewer positions; warn if the user gave a length."""
    if not isinstance(objective.inputs, TextInputs):
        return max_length
    model = objective.teacher
    longest = longest_text(model, objective.inputs.processor, max_length)
    if longest < max_length != CompressSettings.max_length:
        warnings.warn(
            f"max_length={max_length} is more than {type(model).__name__} has positions for: texts are cut after "
            f"{longest} tokens.",
            WidWarning,
            stacklevel=3,
        )
    return longest
