"""Arguments of `WidTrainer`: those of transformers, and those that only a wid model has.

Plain numbers and names, so that `HfArgumentParser` can take them from a command line or a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..errors import ConfigError
from .held_originals import AUTO, refuse_teacher_in_other_dtype, refuse_unknown_dtype
from .losses.registry import DISTILLED, refuse_unknown


@dataclass
class WidTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a learning rate for each kind of weight.

    Args:
        compactor_learning_rate: for compactors; `learning_rate` if None, 0 freezes them.
        teacher_learning_rate: for the teacher's weights; `learning_rate` if None, 0 freezes them.
        distillation: losses between student and teacher that are added to the training loss, some of `"logits"`,
            `"hidden"`, `"relations"`; none by default. The teacher's weights must be frozen.
        distillation_weight: the factor of the sum of these losses.
        distillation_temperature: of the logits.
        full_logits: run a language-model head on all positions, including those without a label.
        teacher_dtype: in what the teacher's frozen matrices are held from the first step on: `"bfloat16"` or
            `"float16"`; `"auto"` leaves them as they are. The teacher that was given is cast itself, once the start is
            made, and stays so; the student's weights keep their dtype. With losses from the teacher it needs `bf16` or
            `fp16`.

    Raises:
        ConfigError: a learning rate below 0, or both 0; an unknown loss or dtype, a weight or temperature that is not
            above 0, or distillation from a teacher that trains; a teacher in half precision that trains, or that a loss
            would run in full precision.
    """

    compactor_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of compactors; 0 freezes them."}
    )
    teacher_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the teacher's weights; 0 freezes them."}
    )
    distillation: list[str] = field(
        default_factory=list, metadata={"help": "Losses from the frozen teacher: 'logits', 'hidden', 'relations'."}
    )
    distillation_weight: float = field(default=1.0, metadata={"help": "Weight of these losses beside the training's."})
    distillation_temperature: float = field(default=2.0, metadata={"help": "Temperature of distilled logits."})
    full_logits: bool = field(
        default=False, metadata={"help": "Run a language-model head on positions without a label as well."}
    )
    teacher_dtype: str = field(
        default=AUTO, metadata={"help": "Dtype of the teacher's frozen matrices: 'auto', 'bfloat16' or 'float16'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_wrong_rates()
        refuse_unknown(self.distillation, DISTILLED, "distillation")
        for name in ("distillation_weight", "distillation_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.distillation and self.teacher_learning_rate != 0:
            raise ConfigError(
                f"distillation={self.distillation} compares the student with its teacher, whose weights must not "
                f"change: set teacher_learning_rate=0 (it is {self.teacher_learning_rate}), or leave distillation out"
            )
        refuse_unknown_dtype(self.teacher_dtype)
        if self.teacher_dtype != AUTO and self.teacher_learning_rate != 0:
            raise ConfigError(
                f"teacher_dtype={self.teacher_dtype!r} is for a teacher whose weights are frozen: set "
                f"teacher_learning_rate=0 (it is {self.teacher_learning_rate}), or leave teacher_dtype out"
            )
        if self.distillation:
            refuse_teacher_in_other_dtype(self)

    def _refuse_wrong_rates(self) -> None:
        names = ("compactor_learning_rate", "teacher_learning_rate")
        rates = {name: getattr(self, name) for name in names}
        if any(rate is not None and rate < 0 for rate in rates.values()):
            given = ", ".join(f"{name}={rate}" for name, rate in rates.items())
            raise ConfigError(f"learning rates must be 0 or more, got {given}")
        if all(rate == 0 for rate in rates.values()):
            raise ConfigError(f"{' and '.join(names)} are both 0, so nothing would train: set one of them above 0")


@dataclass
class WidSeq2SeqTrainingArguments(WidTrainingArguments, Seq2SeqTrainingArguments):
    """`WidTrainingArguments` with those of `Seq2SeqTrainingArguments`, such as `predict_with_generate`."""
