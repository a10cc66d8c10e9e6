"""The loss of a student that imitates its teacher, and may learn labels as well.

What `WidTrainer`, whose student is folded, and `MergedTrainer`, whose student is a stock model, share.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapter.tuner import WidModel
from ..errors import ConfigError
from .accumulation import Reduction, StepSize
from .held_originals import refuse_teacher_in_other_dtype
from .losses.distillation import Distillation
from .losses.watching import Seen
from .student_trainer import StudentTrainer

TARGETS = ("labels", "start_positions", "end_positions")  # arguments of a forward that are not inputs


class Imitation(Protocol):
    """A loss between the outputs of a student and those of its teacher for one batch."""

    def __call__(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss."""


class Imitating(StudentTrainer):
    """Train a student towards the outputs of its teacher, whose weights are frozen, if there is a loss for it.

    Attributes:
        imitation: the loss from the teacher; None trains by the model's own loss alone.
        reduction: over what it is a mean.
        label_weight: w of `(1 - w) * imitation + w * the model's own loss on labels`.
        distillation_weight: of the losses that compare inner states, beside the others.
    """

    imitation: Imitation | None = None
    reduction: Reduction = "labels"
    label_weight: float = 0.0
    distillation_weight: float = 1.0
    _distillation: Distillation | None = None
    _unlabelled_step: StepSize | None = None  # of the optimizer step that is running, as if there were no labels

    @property
    def wid_model(self) -> PeftModel:
        """What `get_wid_model` returned; its teacher teaches."""
        raise NotImplementedError

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher of the current model, with all of its layers."""
        return self.wid_model.base_model.whole_teacher

    def imitate(self, imitation: Imitation, reduction: Reduction, label_weight: float) -> None:
        """Set the loss.

        Raises:
            ConfigError: the weight is not legal.
        """
        if not 0 <= label_weight < 1:
            raise ConfigError(
                f"label_weight={label_weight} is not legal. Legal: from 0, without labels, to less than 1. WidTrainer "
                "trains on labels alone."
            )
        self.imitation, self.reduction, self.label_weight = imitation, reduction, label_weight

    def _size_of(self, batches: list[Any]) -> StepSize:
        if self.imitation is not None:
            self._unlabelled_step = super()._size_of([_without_targets(batch) for batch in batches])
        return super()._size_of(batches)

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        return super()._tried_reduction(inputs) if self.label_weight or self.imitation is None else self.reduction

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch, scaled to its part of the optimizer step; in training, plus distillation."""
        if self.imitation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = _without_targets(inputs)
        distillation = self._distillation if model.training else None
        with distillation.watching() if distillation is not None else nullcontext(Seen()) as student:
            own: Tensor | float = 0.0
            if self.label_weight and given.keys() != inputs.keys():
                own, student.output = self._own_loss(model, dict(inputs), True, num_items_in_batch)
            else:
                student.output = model(**given)
        with self.accelerator.autocast(), torch.no_grad():
            teacher = Seen(output=self.teacher.eval()(**given)) if distillation is None else distillation.target(given)
        loss = self.imitation(self.wid_model.base_model, student.output, teacher.output, given)
        if model.training:
            loss = self._part(loss, given, self.reduction, self._unlabelled_step)
        loss = (1 - self.label_weight) * loss + self.label_weight * own
        self._is_finite = False
        if distillation is not None:
            distilled = self._part(distillation.loss(student, teacher, given), given, step=self._unlabelled_step)
            loss = loss + self.distillation_weight * distilled
        return (loss, student.output) if return_outputs else loss


def refuse_moving_target(trainer: str, args: Any) -> None:
    """Refuse arguments by which the outputs that a student imitates would change, or be compared twice.

    Raises:
        ConfigError: the teacher's weights would train, or run in another dtype than they are held in, or logits are
            distilled as well.
    """
    if getattr(args, "teacher_learning_rate", None) != 0:
        raise ConfigError(
            f"{trainer} compares the student with its teacher, whose weights must not change: pass "
            "WidTrainingArguments(teacher_learning_rate=0, ...)."
        )
    refuse_teacher_in_other_dtype(args)
    if "logits" in getattr(args, "distillation", []):
        raise ConfigError(
            f'{trainer} compares outputs already. Leave "logits" out of distillation, or use WidTrainer on labels.'
        )


def _without_targets(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in TARGETS}
