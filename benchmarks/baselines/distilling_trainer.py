"""Students to compare WID with: stock models of the planned shape, alone or taught by the same teacher.

Takes a wid model, whose plan gives the shape and whose teacher teaches; gives stock students and the trainer for them.
Called by the recipes in `methods.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from teacher_losses import LOSSES, TeacherLoss
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from wid_hf import StudentTrainer, TrainingError
from wid_hf.calibration.batches import prepared
from wid_hf.training.accumulation import Reduction
from wid_hf.training.losses.registry import refuse_unknown
from wid_hf.training.losses.watching import watch


def stock_student(wid_model: PeftModel, *, random: bool, seed: int) -> PreTrainedModel:
    """Return a stock student of the shape that `wid_model` plans, all of whose weights train.

    Args:
        wid_model: what `get_wid_model` returned.
        random: whether weights are drawn as the stock class does, in the place of those of the wid model as it is.
        seed: of what is drawn; the random state is left as it was.

    Raises:
        WidError: the start of the wid model needs data and was given none.
    """
    student = wid_model.merge_and_unload()
    if random:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = type(student)(student.config).to(student.device, student.dtype)
    return student.requires_grad_(True)


class DistillingTrainer(StudentTrainer):
    """Train a stock student beside its frozen teacher, which runs in evaluation mode.

    The loss of evaluation is the model's own, so that runs with different losses compare.

    Args:
        model: the stock student.
        args: plain `TrainingArguments`.
        wid_model: what `get_wid_model` returned; its teacher teaches, its plan tells where attention is.
        loss: `"logits"` (Hinton), `"relations"` (MiniLMv2), `"layers"` (TinyBERT), or `"states"` for a headless
            student whose coordinates are some of its teacher's.
        own_loss: whether the model's own loss is added.
        **kwargs: what else `Trainer` takes.

    Raises:
        ConfigError: an unknown loss.
        TeacherError: the teacher shows nothing that the loss could compare.
        TrainingError: several processes, or `nn.DataParallel`; a run to resume whose loss has weights of its own.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        wid_model: PeftModel,
        loss: str,
        own_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        refuse_unknown([loss], LOSSES, "loss")
        super().__init__(model, args, *others, **kwargs)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise TrainingError(
                "The methods that WID is compared with train in one process on one device. Start one without "
                "torchrun, and show it one GPU (CUDA_VISIBLE_DEVICES)."
            )
        self.own_loss = own_loss
        self.teacher = wid_model.base_model.teacher.to(self.args.device).requires_grad_(False).eval()
        self._given = wid_model, loss
        self.teacher_loss = self._made_loss()
        self.add_callback(_ZeroGradients(self))

    def _made_loss(self) -> TeacherLoss:
        """Return the loss for the model that there is now, with maps of its own."""
        wid_model, loss = self._given
        with torch.random.fork_rng():  # maps of the loss; training is to go on as if nothing had been drawn
            torch.manual_seed(self.args.seed)
            return LOSSES[loss](wid_model, self.student).to(self.args.device)

    def train(self, resume_from_checkpoint: Any = None, *others: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does; what the loss learns is in no checkpoint, so such a run cannot be resumed."""
        if resume_from_checkpoint and self._maps():
            raise TrainingError("The maps that this loss learns are in no checkpoint. Train from the start.")
        return super().train(resume_from_checkpoint, *others, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Let `Trainer` make the optimizer, then add what the loss learns."""
        is_new = self.optimizer is None
        if is_new and self.model_init is not None:
            self.teacher_loss = self._made_loss()
        optimizer = super().create_optimizer(model)
        if is_new and self._maps():
            optimizer.add_param_group({"params": self._maps(), "weight_decay": 0.0})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the model's own loss, where it counts, and while training the teacher's, both over the whole step."""
        if not model.training:
            return self._own_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = {**inputs, **self.teacher_loss.forward_arguments}
        with watch(self.student, [], self.teacher_loss.watched) as student:
            if self.own_loss:
                loss, student.output = self._own_loss(model, asked, True, num_items_in_batch)
            else:
                loss, student.output = 0.0, model(**{name: value for name, value in asked.items() if name != "labels"})
        with (
            self.accelerator.autocast(),
            torch.no_grad(),
            watch(self.teacher, [], self.teacher_loss.watched) as teacher,
        ):
            teacher.output = self.teacher(**prepared(self.teacher, inputs), **self.teacher_loss.forward_arguments)
        loss = loss + self._part(self.teacher_loss(student, teacher, inputs), inputs)
        return (loss, student.output) if return_outputs else loss

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        return super()._tried_reduction(inputs) if self.own_loss else "labels"

    def _maps(self) -> list[nn.Parameter]:
        return list(self.teacher_loss.parameters())


class _ZeroGradients(TrainerCallback):
    """Clears what the maps of a loss have gathered after each step, as `Trainer` does for the model."""

    def __init__(self, trainer: DistillingTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.teacher_loss.zero_grad()
