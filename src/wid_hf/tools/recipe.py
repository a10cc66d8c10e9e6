"""The settings of `compress`, the interface of recipes (ways to make students), and the recipe of WID.

Takes a `WidConfig`, settings and a wid model; gives learning rates and a trainer, or a refusal. Benchmarks pass
`compress` other recipes, for the baselines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from peft import PeftModel
from transformers import TrainingArguments

from ..config import WidConfig
from ..errors import ConfigError, DataError, TeacherError
from ..objectives import Objective
from ..objectives.registry import AUTO, refuse_unknown_task
from ..progressive.schedule import WidSchedule
from ..training.arguments import WidTrainingArguments
from ..training.imitating_trainer import ImitatingTrainer
from ..training.imitation import TARGETS
from ..training.last_good import refuse_unknown_place
from ..training.losses.distillation import can_compare
from ..training.losses.registry import DISTILLED, INNER, refuse_unknown
from ..training.merged_trainer import MergedTrainer, merged
from ..training.one_start import start_once
from ..training.student_trainer import StudentTrainer
from ..training.trainer import WidTrainer
from .training_settings import parsed
from .work_folder import REFINEMENT

COMPACTORS, MERGED = "compactors", "merged"
TRAIN_WEIGHTS = (AUTO, COMPACTORS, MERGED)
Rates = dict[str, float]  # learning rate of each kind of weight that trains: compactors, teacher; or student


@dataclass(frozen=True)
class CompressSettings:
    """How to train; a learning rate that is None is the default for objective and start.

    Attributes:
        steps: optimizer steps; 0 leaves the student at its start.
        batch_size: texts per step.
        max_length: tokens per text, longer ones are cut; never more than the teacher has positions for. Images and
            sounds are taken whole.
        compactor_learning_rate: of compactors.
        train_weights: which weights train: "compactors", by which the student's are folded, or "merged", the student's
            own after its start; "auto" is merged unless other settings are about compactors or the teacher's weights.
        learning_rate: of the student's own weights, if these train.
        task: name of an objective; "auto" takes the one that fits the teacher.
        teacher_learning_rate: of the teacher's weights; must be 0 with losses from the teacher.
        distillation: losses from the teacher beside the others, some of `"logits"`, `"hidden"`, `"relations"`; with
            them the teacher's weights do not change, and "auto" trains compactors. A merged student that learns its
            teacher's outputs takes the last two. None is the default of the objective, `()` none of them.
        dropout: whether the student trains with the dropout of its config.
        label_weight: share of the model's own loss on labels, the rest is of the loss from the teacher; 0 uses no
            labels, 1 nothing but labels. None is 0.5 where rows have labels.
        column: `ROLE=NAME`, or several of them: in which columns rows hold what the task needs, where they have other
            names than usual; `NAME` alone is the column of texts, and `ROLE=` leaves a role out.
        split: of a dataset or a folder to train on.
        validation: files or dataset with held-out rows; by default taken from those to train on.
        validation_split: of that dataset or folder.
        validation_texts: how many held-out rows are scored.
        streaming: read rows while training instead of once before it.
        keep_last_good: where the last weights with a finite loss are kept while training: on their `"device"`, in
            memory of the `"cpu"`, on `"disk"`, or None for nowhere.
        seed: of data order, masking and held-out texts.
        training: other fields of `WidTrainingArguments` by name, as values or as texts.

    Raises:
        ConfigError: a number that is too small, an unknown task or place, or a field in `training` that is unknown, has
            no such value, or is decided by another setting.
        MissingExtraError: `training` names a tracker that is not installed.
    """

    steps: int = 1000
    task: str = AUTO
    batch_size: int = 32
    max_length: int = 128
    train_weights: str = AUTO
    learning_rate: float | None = None
    compactor_learning_rate: float | None = None
    teacher_learning_rate: float | None = None
    distillation: tuple[str, ...] | None = None
    dropout: bool = False
    label_weight: float | None = None
    column: str | Sequence[str] = ()
    split: str = "train"
    validation: str | Sequence[str] | None = None
    validation_split: str = "validation"
    validation_texts: int = 512
    streaming: bool = False
    keep_last_good: str | None = "device"
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_unknown_task(self.task)
        if self.train_weights not in TRAIN_WEIGHTS:
            raise ConfigError(f"train_weights={self.train_weights!r} is unknown. Legal: {', '.join(TRAIN_WEIGHTS)}.")
        refuse_unknown_place(self.keep_last_good)
        object.__setattr__(self, "training", parsed(self.training))
        least = {"steps": 0, "batch_size": 1, "max_length": 3, "validation_texts": 1, "seed": 0}
        rates = dict.fromkeys(("learning_rate", "compactor_learning_rate", "teacher_learning_rate"), 0)
        for name, number in (least | rates).items():
            value = getattr(self, name)
            if value is not None and not value >= number:
                raise ConfigError(f"{name}={value} is too small. Legal: {number} or more.")
        if self.label_weight is not None and not 0 <= self.label_weight <= 1:
            raise ConfigError(f"label_weight={self.label_weight} is not a share. Legal: from 0 to 1.")


class Recipe(Protocol):
    """How a student is made from a teacher: its start, its trainer and its learning rates."""

    @property
    def name(self) -> str:
        """Its name in `wid_report.json`, the `method`."""

    @property
    def title(self) -> str:
        """Its name in cards."""

    @property
    def weights(self) -> Literal["folded", "merged", "cut", "random"]:
        """The student's: folded from the teacher's while it trains or before, cut out of them, or random."""

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the losses from the teacher beside the others, in reports."""

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` with the start that the recipe decides.

        Raises:
            ConfigError: the recipe does not support something in `config`.
        """

    def check_objective(self, objective: type[Objective], teacher: str) -> None:
        """Raise TeacherError if the recipe cannot train a `teacher` by `objective`."""

    def decided(self, objective: type[Objective], model: PeftModel) -> Recipe:
        """Return the recipe with what was left to it decided for a wid model, perhaps not calibrated."""

    def learning_rates(self, objective: type[Objective], config: WidConfig, settings: CompressSettings) -> Rates:
        """Return the learning rate of each kind of weight that trains: those in `settings`, else the defaults.

        Raises:
            ConfigError: `settings` contradict the recipe.
        """

    def trainer(
        self,
        model: PeftModel,
        objective: Objective,
        rates: Rates,
        arguments: dict[str, Any],
        data: dict[str, Any],
    ) -> StudentTrainer:
        """Return the trainer of the student at its start.

        Args:
            model: the wid model, perhaps not calibrated.
            objective: what the teacher is for.
            rates: the result of `learning_rates`.
            arguments: of transformers' `TrainingArguments`, without learning rates.
            data: `train_dataset`, `data_collator` and `keep_last_good`, for any trainer.
        """


# Learning rates (compactors, teacher weights) by objective and start: the best of the sweep in docs/starts.md.
# A reconstruction is dense, so that one step of its compactors moves a weight further than from an identity start.
LEARNING_RATES = {
    ("masked-lm", "calibrated"): (1e-4, 3e-4),
    ("masked-lm", "identity"): (3e-4, 3e-4),
    ("features", "calibrated"): (5e-5, 0.0),
    ("features", "identity"): (2e-4, 0.0),
}
# Of all other objectives those of masked LMs, not swept yet; a teacher whose outputs are learned stays as it is.
OTHER_LEARNING_RATES = {"calibrated": (1e-4, 3e-4), "identity": (3e-4, 3e-4)}


def usual_learning_rates(objective: type[Objective], start: str) -> tuple[float, float]:
    """Return the learning rates of compactors and of the teacher's weights for a start, "calibrated" or "identity"."""
    compactors, teacher = LEARNING_RATES.get((objective.name, start), OTHER_LEARNING_RATES[start])
    return compactors, teacher if objective.has_own_loss else 0.0


# Learning rates of merged students: of masked LMs and sentence vectors the best of a few (reaction BERT, MiniLM), of
# the others not swept yet.
MERGED_LEARNING_RATES = {"masked-lm": 1e-3, "causal-lm": 3e-4, "seq2seq": 3e-4}
MERGED_LEARNING_RATE = 1e-4  # of all others
# What else a merged student compares: with hidden states the reaction classifier at half width agrees with its teacher
# on 92.8 % of rows after 1,000 steps of 16, without on 90.6 % (docs/design.md).
MERGED_DISTILLATION = {"sequence-classification": ("hidden",), "token-classification": ("hidden",)}
LABEL_WEIGHT = 0.5  # where rows have labels


@dataclass(frozen=True)
class WidRecipe:
    """Weight-Inherited Distillation, with losses from the teacher if `distillation` names some.

    Attributes:
        progressive: whether the student becomes narrow by steps.
        distillation: losses from the teacher beside the others.
        label_weight: as in `CompressSettings`.
        dropout: the same.

    Raises:
        ConfigError: an unknown loss.
    """

    progressive: bool = False
    distillation: tuple[str, ...] = ()
    label_weight: float | None = None
    dropout: bool = False
    weights: ClassVar[Literal["folded"]] = "folded"

    def __post_init__(self) -> None:
        refuse_unknown(self.distillation, DISTILLED, "distillation")

    @classmethod
    def of(cls, config: WidConfig, settings: CompressSettings) -> WidRecipe:
        """Return the recipe that config and settings describe.

        Raises:
            ConfigError: an unknown loss, or settings of weights that do not train.
        """
        if settings.learning_rate is not None:
            raise ConfigError(
                f"learning_rate={settings.learning_rate:g} is for train_weights={MERGED}. Compactors and the teacher's "
                "weights have compactor_learning_rate= and teacher_learning_rate=."
            )
        return cls(
            isinstance(config.schedule, WidSchedule),
            tuple(settings.distillation or ()),
            settings.label_weight,
            settings.dropout,
        )

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "wid-kd" if self.distillation else "wid-progressive" if self.progressive else "wid"

    @property
    def title(self) -> str:
        """Its name in cards."""
        return {"wid": "WID", "wid-progressive": "WID, progressive", "wid-kd": "WID with distillation"}[self.name]

    @property
    def compared(self) -> tuple[str, ...]:
        """The losses from the teacher."""
        return self.distillation

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` as it is."""
        return config

    def check_objective(self, objective: type[Objective], teacher: str) -> None:
        """Raise TeacherError if the teacher has no logits or no inner states to compare, or no loss on labels."""
        if "logits" in self.distillation and not objective.has_logits:
            raise TeacherError(
                f'distillation="logits" compares scores of classes, and {teacher} is {objective.one}, which has none. '
                'Leave "logits" out: the student learns its teacher\'s outputs anyway.'
            )
        refuse_two_stacks(self.distillation, objective, teacher)
        refuse_label_weight(self.label_weight, objective, teacher)

    def decided(self, objective: type[Objective], model: PeftModel) -> WidRecipe:
        """Return the recipe as it is."""
        return self

    def learning_rates(self, objective: type[Objective], config: WidConfig, settings: CompressSettings) -> Rates:
        """Return the learning rates of compactors and of the teacher's weights, 0 if losses compare with these.

        Raises:
            ConfigError: losses compare with a teacher that would train.
        """
        compactors, teacher = usual_learning_rates(objective, str(config.init))
        if self.distillation:
            if settings.teacher_learning_rate:
                raise ConfigError(
                    f"distillation={','.join(self.distillation)} follows the teacher's own weights, so they must not "
                    "change: pass teacher_learning_rate=0, or leave distillation= out."
                )
            teacher = 0.0
        if settings.teacher_learning_rate and not objective.has_own_loss and self.label_weight != 1:
            raise ConfigError(
                f"Students of {objective.title} learn the outputs of their teacher, whose weights must not change: "
                "pass teacher_learning_rate=0, or leave it out."
            )
        given = settings.compactor_learning_rate, settings.teacher_learning_rate
        return {
            "compactors": compactors if given[0] is None else given[0],
            "teacher": teacher if given[1] is None else given[1],
        }

    def trainer(
        self,
        model: PeftModel,
        objective: Objective,
        rates: Rates,
        arguments: dict[str, Any],
        data: dict[str, Any],
    ) -> StudentTrainer:
        """Return a calibrated model's trainer: `WidTrainer` for a loss of its own, else `ImitatingTrainer`.

        Raises:
            DataError: there shall be a loss on labels, and the rows have none.
        """
        label_weight = weight_of_labels(self.label_weight, objective, data["train_dataset"])
        imitates = not objective.has_own_loss and label_weight < 1
        args = WidTrainingArguments(
            **arguments,
            compactor_learning_rate=rates["compactors"],
            teacher_learning_rate=rates["teacher"],
            # An imitation compares logits already.
            distillation=[name for name in self.distillation if not (imitates and name == "logits")],
        )
        if imitates:
            trainer: WidTrainer = ImitatingTrainer(
                model=model,
                args=args,
                imitation=objective.loss,
                reduction=objective.reduction,
                label_weight=label_weight,
                dropout=self.dropout,
                **data,
            )
        else:
            trainer = WidTrainer(model=model, args=args, dropout=self.dropout, **data)
        calibrate(model, trainer)
        return trainer


@dataclass(frozen=True)
class MergedRecipe:
    """The student of a calibrated start, merged at once; then its own weights train.

    Attributes:
        distillation: losses that compare inner states with the teacher's, beside those of outputs; None leaves them to
            `decided`.
        label_weight: as in `CompressSettings`.
        dropout: the same.

    Raises:
        ConfigError: an unknown loss.
    """

    distillation: tuple[str, ...] | None = None
    label_weight: float | None = None
    dropout: bool = False
    name: ClassVar[str] = "wid-merged"
    title: ClassVar[str] = "WID, merged before training"
    weights: ClassVar[Literal["merged"]] = "merged"

    @classmethod
    def of(cls, config: WidConfig, settings: CompressSettings) -> MergedRecipe:
        """Return the recipe that settings describe.

        Raises:
            ConfigError: settings of weights that do not train, or an unknown loss.
        """
        given = of_compactors(config, settings)
        if given:
            raise ConfigError(
                f"train_weights={MERGED} trains the student's own weights: leave {given[0]}= out, which is for "
                f"train_weights={COMPACTORS}. Its own setting is learning_rate=."
            )
        if settings.distillation and settings.label_weight == 1:
            raise ConfigError(
                "label_weight=1 trains a merged student on labels alone: leave distillation= out, or pass less."
            )
        losses = settings.distillation
        if losses is None and settings.training.get("torch_compile"):
            losses = ()  # inner states are not seen in compiled forwards
        return cls(None if losses is None else tuple(losses), settings.label_weight, settings.dropout)

    def __post_init__(self) -> None:
        refuse_unknown(self.compared, INNER, "distillation")

    @property
    def compared(self) -> tuple[str, ...]:
        """The losses that compare inner states."""
        return self.distillation or ()

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` as it is."""
        return config

    def check_objective(self, objective: type[Objective], teacher: str) -> None:
        """Raise TeacherError if there are no inner states to compare or the loss is the model's own, or no labels."""
        if self.compared and objective.has_own_loss:
            raise TeacherError(
                f"{teacher} is {objective.one}: merged, it trains by its own loss alone. Leave distillation= out, or "
                f"pass train_weights={COMPACTORS}."
            )
        refuse_two_stacks(self.compared, objective, teacher)
        refuse_label_weight(self.label_weight, objective, teacher)

    def decided(self, objective: type[Objective], model: PeftModel) -> MergedRecipe:
        """Return the recipe with the inner states that are usual for the objective, if the model has comparable ones.

        There are none for students that learn labels alone.
        """
        if self.distillation is not None:
            return self
        usual = MERGED_DISTILLATION.get(objective.name, ()) if self.label_weight != 1 else ()
        return replace(self, distillation=usual if usual and can_compare(model, usual) else ())

    def learning_rates(self, objective: type[Objective], config: WidConfig, settings: CompressSettings) -> Rates:
        """Return the student's learning rate."""
        default = MERGED_LEARNING_RATES.get(objective.name, MERGED_LEARNING_RATE)
        return {"student": default if settings.learning_rate is None else settings.learning_rate}

    def trainer(
        self,
        model: PeftModel,
        objective: Objective,
        rates: Rates,
        arguments: dict[str, Any],
        data: dict[str, Any],
    ) -> StudentTrainer:
        """Return the merged student's trainer, by the model's own loss if it has one, else from its teacher.

        Raises:
            DataError: there shall be a loss on labels, and the rows have none.
        """
        label_weight = weight_of_labels(self.label_weight, objective, data["train_dataset"])
        args = TrainingArguments(**arguments, learning_rate=rates["student"])
        calibrate(model, WidTrainer(model=model, args=args, **data))
        if objective.has_own_loss or label_weight == 1:
            return StudentTrainer(model=merged(model), args=args, dropout=self.dropout, **data)
        return MergedTrainer(
            model,
            args,
            imitation=objective.loss,
            reduction=objective.reduction,
            label_weight=label_weight,
            distillation=self.compared,
            dropout=self.dropout,
            **data,
        )


def recipe_of(config: WidConfig, settings: CompressSettings) -> Recipe:
    """Return the recipe that config and settings describe.

    Raises:
        ConfigError: they contradict each other.
    """
    merges = settings.train_weights == MERGED
    if settings.train_weights == AUTO and settings.steps:
        merges = not (settings.distillation or of_compactors(config, settings))
    return MergedRecipe.of(config, settings) if merges else WidRecipe.of(config, settings)


def of_compactors(config: WidConfig, settings: CompressSettings) -> list[str]:
    """Return the names of what is given that compactors, or the teacher's weights, must train for."""
    given = [
        name for name in ("compactor_learning_rate", "teacher_learning_rate") if getattr(settings, name) is not None
    ]
    of_wid = {each.name for each in fields(WidTrainingArguments)} - {each.name for each in fields(TrainingArguments)}
    given += sorted(of_wid & set(settings.training))
    return [*given, "schedule"] if isinstance(config.schedule, WidSchedule) else given


def refuse_two_stacks(distillation: Collection[str], objective: type[Objective], teacher: str) -> None:
    """Raise TeacherError if inner states shall be compared, and the teacher has those of an encoder and a decoder."""
    inside = [name for name in distillation if name in INNER]
    if inside and not objective.has_one_stack:
        raise TeacherError(
            f'distillation="{",".join(inside)}" compares inner states of an encoder or of a decoder, and {teacher} '
            f"has both. Leave {' and '.join(inside)} out: the student learns its teacher's outputs anyway."
        )


def calibrate(model: PeftModel, trainer: WidTrainer) -> None:
    """Make the start of a model that has none, from rows of its trainer.

    Layers that refinement has finished are saved in the trainer's folder, and a later call goes on behind them.
    """
    if model.base_model.calibrated:
        return
    folder = Path(trainer.args.output_dir) / REFINEMENT if trainer.is_world_process_zero() else None
    refines = model.peft_config[model.active_adapter].calibration_config.refine
    batches = trainer.calibration_batches()
    start_once(model, trainer.args, lambda: model.base_model.calibrate(batches, folder=folder if refines else None))


def refuse_label_weight(label_weight: float | None, objective: type[Objective], teacher: str) -> None:
    """Raise TeacherError if a `teacher` has no loss on labels to weigh."""
    if label_weight is not None and not objective.takes_labels:
        raise TeacherError(
            f"label_weight={label_weight:g} weighs a loss on labels, and {teacher} is {objective.one}, which trains "
            "without. Leave label_weight= out."
        )


def weight_of_labels(label_weight: float | None, objective: Objective, rows: Any) -> float:
    """Return the share of the loss on labels, for training rows that have labels or not.

    Raises:
        DataError: a share is given, and there are none.
    """
    columns = rows.column_names or next(iter(rows))  # a stream does not know its columns
    has_labels = not set(TARGETS).isdisjoint(columns)
    if label_weight is None:
        return LABEL_WEIGHT if has_labels else 0.0
    if label_weight and not has_labels:
        assert objective.target is not None
        raise DataError(
            f"label_weight={label_weight:g} weighs a loss on labels, and the training rows have none. Name their "
            f"column with --column {objective.target.name}=NAME, or leave label_weight= out."
        )
    return label_weight
