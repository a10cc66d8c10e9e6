"""Training from the teacher: the student imitates the originals that it is folded from, and may learn labels as well.

Takes a wid model and a function that compares outputs. The teacher has the tensors that the student is folded from, so
there is no second copy. Called by `compress`; `FollowingTrainer` is built on it.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import TrainingArguments

from .accumulation import Reduction
from .imitation import Imitation, refuse_moving_target
from .trainer import WidTrainer


class ImitatingTrainer(WidTrainer):
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
        refuse_moving_target(type(self).__name__, args)
        self.imitate(imitation, reduction, label_weight)
        super().__init__(model, args, *others, **kwargs)
