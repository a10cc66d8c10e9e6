"""Training a headless encoder without labels: the student follows its teacher.

Takes a wid model of an encoder that returns `last_hidden_state`. The teacher has the tensors that the student is folded
from, so there is no second copy. Called by `compress` and by users.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from ..errors import ConfigError, TeacherError
from .accumulation import Reduction
from .losses.following import following_loss
from .losses.registry import FOLLOWED, LOSSES
from .trainer import WidTrainer


class FollowingTrainer(WidTrainer):
    """Train a headless student towards its teacher's hidden states and the cosines between its texts.

    The teacher's weights are frozen (they are the target); `teacher_learning_rate` must be 0.

    Args:
        cosine_weight: weight of the cosine term beside the hidden-state term.

    Raises:
        ConfigError: the teacher's weights would train.
        TeacherError: the teacher has no `last_hidden_state`.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        cosine_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if getattr(args, "teacher_learning_rate", None) != 0:
            raise ConfigError(
                f'FollowingTrainer compares the student with its teacher (loss "{FOLLOWED}": {LOSSES[FOLLOWED]}). The '
                "teacher's weights must not change: pass WidTrainingArguments(teacher_learning_rate=0, ...)."
            )
        if getattr(args, "distillation", []):
            raise ConfigError(
                f'FollowingTrainer trains with the loss "{FOLLOWED}" ({LOSSES[FOLLOWED]}) alone. Leave distillation '
                "out, or use WidTrainer."
            )
        super().__init__(model, args, *others, **kwargs)
        self.cosine_weight = cosine_weight

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher of the current model."""
        return self.model.base_model.teacher

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        return "labels"  # the model's own loss, if it has one, is not used

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return `following_loss` of one batch, scaled to its part of the optimizer step."""
        given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        with torch.no_grad():
            target = self.teacher.eval()(**given)
        if not hasattr(target, "last_hidden_state"):
            raise TeacherError(
                f'{type(self.teacher).__name__} returns no last_hidden_state, which the loss "{FOLLOWED}" compares. '
                "Give FollowingTrainer an encoder without a head, or use WidTrainer."
            )
        output = model(**given)
        states, theirs = output.last_hidden_state, target.last_hidden_state
        if self.model.base_model.is_wide:
            states = self.model.base_model.map_outputs(states)
        mask = given.get("attention_mask", torch.ones(theirs.shape[:2], device=theirs.device))
        loss = following_loss(states, self.model.base_model.map_outputs(theirs), theirs, mask, self.cosine_weight)
        if model.training:
            loss = self._part(loss, inputs)
        return (loss, output) if return_outputs else loss
