"""The ways to a student of a given shape that benchmarks compare: WID and six others, all through `compress`.

Takes names and a `WidConfig`; gives students of one shape, made from the same texts in the same order. `Baseline` is
the recipe of those that are not WID: what they start from, what they are trained on and how fast, or a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distilling_trainer import DistillingTrainer, stock_student
from peft import PeftModel
from transformers import TrainingArguments

from wid_hf import ConfigError, StudentTrainer, TeacherError, WidConfig, WidSchedule, WidTrainer
from wid_hf.objectives import Objective
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.recipe import Rates
from wid_hf.tools.reports.wid_report import Report


@dataclass(frozen=True)
class Method:
    """One way to make a student.

    Attributes:
        name: of `--method`.
        title: what tables and cards call it.
        weights: `"folded"` from the teacher's while it trains (WID); `"cut"` out of the teacher's before training; or
            `"random"`.
        losses: from the teacher beside the model's own: of `WidTrainer` where weights are folded, else of
            `DistillingTrainer`.
        selection: which indices are cut out.
        headless: whether it applies to an encoder without a head, which has neither logits nor a loss of its own.
    """

    name: str
    title: str
    weights: Literal["folded", "cut", "random"]
    losses: tuple[str, ...] = ()
    selection: Literal["first", "variance"] = "first"
    headless: bool = True

    @property
    def folds(self) -> bool:
        """Whether compactors train."""
        return self.weights == "folded"

    def compress(
        self,
        teacher: str,
        train: str,
        output: Path,
        config: WidConfig,
        settings: CompressSettings,
        learning_rate: float | None = None,
    ) -> Report:
        """Make a student by this method; arguments, result and errors are those of `wid_hf.tools.compress.compress`.

        Args:
            teacher: folder or Hub id.
            train: texts.
            output: folder for the student.
            config: its sizes; a schedule is for WID alone, and `wid-progressive` brings the default one.
            settings: how to train.
            learning_rate: of a stock student, for methods without compactors.
        """
        if not self.folds:
            return compress(teacher, train, output, config, settings, recipe=Baseline(self, learning_rate))
        if learning_rate is not None:
            raise ConfigError(
                f"The method {self.name} trains compactors and the teacher's weights. Give compactor_learning_rate= "
                "and teacher_learning_rate= instead of learning_rate=."
            )
        if self.name == "wid-progressive" and not isinstance(config.schedule, WidSchedule):
            config = replace(config, init=None, selection=None, schedule=WidSchedule())
        return compress(
            teacher, train, output, config, replace(settings, train_weights="compactors", distillation=self.losses)
        )


_ALL = (
    Method("scratch", "from scratch", "random", headless=False),
    Method("slice", "slicing, then fine-tuning", "cut"),
    Method("variance", "pruning by variance, then fine-tuning", "cut", selection="variance"),
    Method("logit-kd", "distillation of logits", "random", ("logits",), headless=False),
    Method("minilm", "MiniLMv2", "random", ("relations",)),
    Method("tinybert", "TinyBERT", "random", ("layers",)),
    Method("wid-progressive", "WID, progressive", "folded"),
    Method("wid", "WID", "folded"),
    Method("wid-kd", "WID with distillation", "folded", ("logits", "hidden", "relations"), headless=False),
)
METHODS = {method.name: method for method in _ALL}

# By where a stock student's weights come from: those that benchmarks/calibration used, random weights at the best of
# a coarse sweep. `python benchmarks/methods sweep` measures better ones.
STOCK_LEARNING_RATES = {"random": 1e-3, "cut": 3e-4}


@dataclass(frozen=True)
class Baseline:
    """The recipe of a method without compactors: a stock student, cut or random, alone or taught by its teacher.

    Attributes:
        method: which one.
        learning_rate: of the student's weights; None is the default of where they come from.
    """

    method: Method
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.method.name

    @property
    def title(self) -> str:
        """What cards call it."""
        return self.method.title

    @property
    def weights(self) -> Literal["folded", "cut", "random"]:
        """Where the student's weights come from."""
        return self.method.weights

    @property
    def compared(self) -> tuple[str, ...]:
        """No losses beside its own."""
        return ()

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` with the start that the method decides.

        Raises:
            ConfigError: a progressive schedule, which needs compactors.
        """
        if isinstance(config.schedule, WidSchedule):
            raise ConfigError(
                f"The method {self.name} is narrow from the first step: leave the progressive schedule out, or take "
                "the method wid-progressive."
            )
        return replace(config, init="identity", selection=self.method.selection)

    def check_objective(self, objective: type[Objective], teacher: str) -> None:
        """Raise TeacherError if the method needs logits or a loss that a `teacher` does not have on plain texts."""
        if not objective.has_own_loss and not self.method.headless:
            others = ", ".join(method.name for method in METHODS.values() if method.headless)
            raise TeacherError(
                f"The method {self.name} needs logits or a training loss of the model's own, and {teacher} is "
                f"{objective.one}. These apply: {others}."
            )

    def decided(self, objective: type[Objective], model: PeftModel) -> Baseline:
        """Return the recipe as it is."""
        return self

    def learning_rates(self, objective: type[Objective], config: WidConfig, settings: CompressSettings) -> Rates:
        """Return the student's learning rate.

        Raises:
            ConfigError: settings of compactors, of a teacher that trains, or of their distillation.
        """
        if settings.compactor_learning_rate is not None or settings.teacher_learning_rate is not None:
            raise ConfigError(
                f"The method {self.name} trains no compactors. Give learning_rate= instead of compactor_learning_rate= "
                "and teacher_learning_rate=."
            )
        if settings.distillation:
            raise ConfigError(f"The method {self.name} has losses of its own: leave distillation= out.")
        default = STOCK_LEARNING_RATES[self.weights]
        return {"student": default if self.learning_rate is None else self.learning_rate}

    def trainer(
        self,
        model: PeftModel,
        objective: Objective,
        rates: Rates,
        arguments: dict[str, Any],
        data: dict[str, Any],
    ) -> StudentTrainer:
        """Return the trainer of the student at its start; `model` gives shape and teacher."""
        args = TrainingArguments(**arguments, learning_rate=rates["student"])
        if not model.base_model.calibrated:
            model.base_model.calibrate(WidTrainer(model=model, args=args, **data).calibration_batches())
        student = stock_student(model, random=self.weights == "random", seed=arguments["seed"])
        own_loss = objective.has_own_loss
        losses = self.method.losses if own_loss or self.method.losses else ("states",)
        if not losses:
            return StudentTrainer(model=student, args=args, **data)
        (loss,) = losses
        return DistillingTrainer(model=student, args=args, wid_model=model, loss=loss, own_loss=own_loss, **data)
