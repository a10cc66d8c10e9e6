"""Training without labels: the student imitates the teacher that it is folded from.

Takes a wid model and a function that compares outputs. The teacher has the tensors that the student is folded from, so
there is no second copy. Called by `compress`; `FollowingTrainer` is built on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from ..adapter.tuner import WidModel
from ..errors import ConfigError
from .accumulation import Reduction
from .trainer import WidTrainer


class Imitation(Protocol):
    """A loss between the outputs of a student and those of its teacher for one batch."""

    def __call__(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss."""


class ImitatingTrainer(WidTrainer):
    """Train a student towards the outputs of its teacher, whose weights are frozen.

    Args:
        imitation: the loss; no other one trains, and labels are not used.
        reduction: over what the loss is a mean: "labels" stands for attended positions, "rows" for examples.

    Raises:
        ConfigError: the teacher's weights would train, or other losses are asked for.
    """

    def __init__(
        self,
        model: PeftModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        imitation: Imitation,
        reduction: Reduction = "labels",
        **kwargs: Any,
    ) -> None:
        kind = type(self).__name__
        if getattr(args, "teacher_learning_rate", None) != 0:
            raise ConfigError(
                f"{kind} compares the student with its teacher, whose weights must not change: pass "
                "WidTrainingArguments(teacher_learning_rate=0, ...)."
            )
        if getattr(args, "distillation", []):
            raise ConfigError(
                f"{kind} trains with one loss from the teacher alone. Leave distillation out, or use WidTrainer."
            )
        super().__init__(model, args, *others, **kwargs)
        self.imitation = imitation
        self.reduction = reduction

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher of the current model."""
        return self.model.base_model.teacher

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        return self.reduction  # the model's own loss, if it has one, is not used

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch, scaled to its part of the optimizer step."""
        given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        with torch.no_grad():
            target = self.teacher.eval()(**given)
        output = model(**given)
        loss = self.imitation(self.model.base_model, output, target, given)
        if model.training:
            loss = self._part(loss, inputs, self.reduction)
        return (loss, output) if return_outputs else loss
