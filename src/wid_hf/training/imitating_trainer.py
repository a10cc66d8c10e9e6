"""Training from the teacher: the student imitates the originals that it is folded from, and may learn labels as well.

Takes a wid model and a function that compares outputs. The teacher has the tensors that the student is folded from, so
there is no second copy. Called by `compress`; `FollowingTrainer` is built on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from ..adapter.tuner import WidModel
from ..errors import ConfigError
from .accumulation import Reduction, StepSize
from .losses.watching import Seen
from .trainer import WidTrainer

TARGETS = ("labels", "start_positions", "end_positions")  # arguments of a forward that are not inputs


class Imitation(Protocol):
    """A loss between the outputs of a student and those of its teacher for one batch."""

    def __call__(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss."""


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
        if not 0 <= label_weight < 1:
            raise ConfigError(
                f"label_weight={label_weight} is not legal. Legal: from 0, without labels, to less than 1. WidTrainer "
                "trains on labels alone."
            )
        super().__init__(model, args, *others, **kwargs)
        self.imitation = imitation
        self.reduction = reduction
        self.label_weight = label_weight
        self._unlabelled_step: StepSize | None = None

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher of the current model."""
        return self.model.base_model.teacher

    def _size_of(self, batches: list[Any]) -> StepSize:
        self._unlabelled_step = super()._size_of([_without_targets(batch) for batch in batches])
        return super()._size_of(batches)

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        return super()._tried_reduction(inputs) if self.label_weight else self.reduction

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch, scaled to its part of the optimizer step; in training, plus distillation."""
        given = _without_targets(inputs)
        distillation = self._distillation if model.training else None
        with nullcontext(Seen()) if distillation is None else distillation.watching() as student:
            own: Tensor | float = 0.0
            if self.label_weight and given.keys() != inputs.keys():
                own, student.output = self._own_loss(model, dict(inputs), True, num_items_in_batch)
            else:
                student.output = model(**given)
        with self.accelerator.autocast(), torch.no_grad():
            teacher = Seen(output=self.teacher.eval()(**given)) if distillation is None else distillation.target(given)
        loss = self.imitation(self.model.base_model, student.output, teacher.output, given)
        if model.training:
            loss = self._part(loss, given, self.reduction, self._unlabelled_step)
        loss = (1 - self.label_weight) * loss + self.label_weight * own
        if distillation is not None:
            distilled = self._part(distillation.loss(student, teacher, given), given, step=self._unlabelled_step)
            loss = loss + self.args.distillation_weight * distilled
        return (loss, student.output) if return_outputs else loss


def _without_targets(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in TARGETS}
