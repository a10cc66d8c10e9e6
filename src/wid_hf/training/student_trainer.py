"""`StudentTrainer`: transformers' `Trainer` with what the training of any student needs.

Takes what `Trainer` takes. Runs that are compared see the same batches with the same masks, a loss does not depend on
how a step is split into micro-batches, and a loss that is not finite stops the training. `WidTrainer` and
`DistillingTrainer` build on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from ..labelled import NO_LABEL, shifts_labels
from .collation import SteadyCollator


class StudentTrainer(Trainer):
    """Train a student: the same masks for all, a loss averaged over the labels of a step, and a stop at NaN.

    Where the loss stops being finite, training stops before the step is taken, the weights go back to the last ones
    whose loss was finite, and `TrainingError` says so. They are kept in memory every `logging_steps` steps.

    Raises:
        TrainingError: from `train`, when the loss is NaN or infinite.
    """

    data_collator: Any
    rates = "learning_rate"  # what the message about a loss that is not finite advises to lower

    def __init__(self, model: nn.Module, args: TrainingArguments | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(_CountEpochs(self))
        self._back_at: int | None = None  # the step that weights went back to
        # Step, model (a progressive training changes it) and weights.
        self._good: tuple[int, nn.Module, dict[str, Tensor]] | None = None

    @property
    def student(self) -> PreTrainedModel:
        """The stock model that trains."""
        return self.model

    @property
    def weights_of_step(self) -> int:
        """After how many steps the weights were as they are: fewer than were done where the loss became NaN."""
        return self.state.global_step if self._back_at is None else self._back_at

    def get_train_dataloader(self) -> DataLoader:
        """Return `Trainer`'s, whose batches have the same random masks in a run that is resumed."""
        given = self.data_collator
        self.data_collator = self.steady_collator = SteadyCollator(given, self.args.seed)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = given

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """Return the loss averaged over the labels of the whole optimizer step."""
        return self._own_loss(model, inputs, return_outputs, num_items_in_batch)

    def _own_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        """Return the training loss averaged over the labels of the whole optimizer step, however it is accumulated.

        `Trainer` leaves that to the model, and many (BERT among them) average over the micro-batch instead;
        their loss would then grow with `gradient_accumulation_steps`.
        """
        if num_items_in_batch is None or not self._averages_per_batch():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"].ne(NO_LABEL).sum()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        share = labels / torch.as_tensor(num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices:
            share = share * self.accelerator.num_processes
        return (loss * share, outputs) if return_outputs else loss * share

    def _averages_per_batch(self) -> bool:
        # Causal LMs count shifted labels and do use num_items_in_batch; so does a loss of the user's own.
        is_causal = shifts_labels(self.student)
        return not is_causal and self.compute_loss_func is None and self.args.n_gpu <= 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward; refuse a loss that is not finite."""
        loss = self._micro_batch(model, inputs, num_items_in_batch)
        step = self.state.global_step
        if self._good is not None and self._good[1] is not self.student:
            self._keep_weights()  # it has shrunk since; what it is made of came from a step whose loss was finite
        if not torch.isfinite(loss):
            self._go_back(float(loss))
        if self._good is None or (step != self._good[0] and step % self._keep_every() == 0):
            self._keep_weights()
        return loss

    def _micro_batch(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        return super().training_step(model, inputs, num_items_in_batch)

    def _keep_weights(self) -> None:
        weights = {name: p.detach().clone() for name, p in self._trained()}
        self._good = self.state.global_step, self.student, weights

    def _go_back(self, loss: float) -> None:
        step = self.state.global_step
        self._back_at = 0
        kept = "No step had a finite loss, so the weights are those before training."
        if self._good is not None:
            good, _, tensors = self._good
            self._back_at = good
            with torch.no_grad():
                for name, parameter in self._trained():
                    parameter.copy_(tensors[name])
            kept = f"The model is back at its weights after step {good}, whose loss was finite."
        raise TrainingError(
            f"The loss became {loss} after {step} of {self.state.max_steps} steps, and training stopped. {kept} "
            f"Lower {self.rates}, or check the data for empty batches."
        )

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _keep_every(self) -> int:
        # logging_steps below 1 is a share of all steps; Trainer has resolved it in its state by now.
        return max(1, int(self.state.logging_steps or 1))


class _CountEpochs(TrainerCallback):
    """Tells the collator of training which epoch begins."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.next = int(state.epoch or 0)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.steady_collator.epoch = self.next
        self.next += 1
