"""Training from the teacher: the student imitates the originals that it is folded from, and may learn labels as well.

Takes a wid model and a function that compares outputs. The teacher has the tensors that the student is folded from, so
there is no second copy. Called by `compress`; `FollowingTrainer` is built on it.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from ..errors import ConfigError
from .accumulation import Reduction
from .imitation import Imitating, Imitation
from .trainer import WidTrainer


class ImitatingTrainer(Imitating, WidTrainer):
    """Train a student towards the outputs of its teacher, whose weights are frozen.

    Args:
        imitation: the loss from the teacher.
        reduction: over what it is a mean: "labels" stands for attended positions, "rows" for examples.
        label_weight: w of `(1 - w) * imitation + w * the model's own loss on labels`, from 0 to less than 1; with 0 no
            labels are used.

    Raises:
        ConfigError: the teacher's weights would train, a weight is not legal, or a loss is asked for that the imitation
            has already.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        imitation: Imitation,
        reduction: Reduction = "labels",
        label_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        kind = type(self).__name__
        if getattr(args, "teacher_learning_rate", None) != 0:
            raise ConfigError(
                f"{kind} compares the student with its teacher, whose weights must not change: pass "
                "WidTrainingArguments(teacher_learning_rate=0, ...)."
            )
        if "logits" in getattr(args, "distillation", []):
            raise ConfigError(
                f'{kind} compares outputs already. Leave "logits" out of distillation, or use WidTrainer on labels.'
            )
        self.imitate(imitation, reduction, label_weight)
        super().__init__(model, args, *others, **kwargs)

    @property
    def wid_model(self) -> PeftModel:
        """The model that trains."""
        return self.model
