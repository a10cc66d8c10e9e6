"""Training a headless encoder without labels: the student follows its teacher's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import TrainingArguments

from ..adapter.tuner import WidModel
from .imitating_trainer import ImitatingTrainer
from .losses.following import followed


class FollowingTrainer(ImitatingTrainer):
    """Train a headless student towards its teacher's hidden states and the cosines between its texts.

    The teacher's weights are frozen (they are the target); `teacher_learning_rate` must be 0.

    Args:
        cosine_weight: weight of the cosine term beside the hidden-state term.

    Raises:
        ConfigError: the teacher's weights would train.
        TeacherError: from `train`, the teacher has no `last_hidden_state`.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        cosine_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, *others, imitation=self._followed, **kwargs)
        self.cosine_weight = cosine_weight

    def _followed(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        return followed(wid, student, teacher, inputs, self.cosine_weight)
