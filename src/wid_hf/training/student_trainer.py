"""`StudentTrainer`: transformers' `Trainer` with additions for the training of any student.

Takes `Trainer`'s arguments. Runs with one seed have the same batches with the same masks, a loss does not depend on how
a step is split into micro-batches, and a loss that is not finite stops the training. `WidTrainer` and `benchmarks/`'
`DistillingTrainer` are built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..coupling.trace import output_tensors
from ..errors import TrainingError
from .accumulation import Reduction, StepSize, find_reduction, has_no_label
from .checkpoints import begin_checkpoint
from .collation import SteadyCollator
from .dropout import without_dropout
from .generation import GeneratingTrainer
from .labelled_positions import shifts_labels
from .last_good import LastGood, last_good, refuse_unknown_place


class StudentTrainer(GeneratingTrainer):
    """Train a student: the same masks in each run, the loss of a step as of one large batch, and a stop at NaN.

    Its arguments are those of `Trainer`, in the same order; with `Seq2SeqTrainingArguments` it is transformers'
    `Seq2SeqTrainer`. If the loss is not finite, training stops before the optimizer's step, the weights go back to the
    last copy with a finite loss, and `TrainingError` says so. A copy is made every `logging_steps` steps.

    Args:
        dropout: whether the student trains with the dropout of its config.
        keep_last_good: where that copy is: on the `"device"` of the weights, in memory of the `"cpu"`, or on `"disk"`,
            a file in `output_dir` that is gone when training ends. None keeps no copy.

    Raises:
        ConfigError: there is no such place.
        TrainingError: from `train`, when the loss is NaN or infinite.
        OutputError: from `train`, when a copy cannot be written to disk.
    """

    data_collator: Any
    rates = "learning_rate"  # the argument to lower, for the message about a loss that is not finite

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        dropout: bool = True,
        keep_last_good: str | None = "device",
        **kwargs: Any,
    ) -> None:
        refuse_unknown_place(keep_last_good)
        super().__init__(model, args, *others, **kwargs)
        self.dropout, self.keep_last_good = dropout, keep_last_good
        self.add_callback(_TrainingBegins(self))
        self._good: LastGood | None = None
        self._back_at: int | None = None  # the step that weights went back to
        self._step: StepSize | None = None  # of the optimizer step that is running
        self._reduction: Reduction | None = None
        self._is_finite = False  # whether the loss of this micro-batch was read and is finite

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, without its filter of losses that are not finite, which none gets past here.

        The filter waits for the device twice in every step.
        """
        given, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, False
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.logging_nan_inf_filter = given
            self._drop_good()

    @property
    def student(self) -> PreTrainedModel:
        """The stock model that trains."""
        return self.model

    @property
    def last_good(self) -> LastGood | None:
        """The copy of the last good weights, while a training runs that keeps one."""
        return self._good

    @property
    def weights_of_step(self) -> int:
        """The step of the current weights: smaller than the number of steps done if the loss became NaN."""
        return self.state.global_step if self._back_at is None else self._back_at

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does; a checkpoint written over an older one does not look whole until it is complete."""
        if output_dir is not None and _internal_call:
            if self.args.should_save:
                begin_checkpoint(Path(output_dir))
            self.accelerator.wait_for_everyone()  # the others write their random states next
        super().save_model(output_dir, _internal_call)

    def get_train_dataloader(self) -> DataLoader:
        """Return `Trainer`'s data loader; its batches have the same random masks in a resumed run."""
        given = self.data_collator
        self.data_collator = self.steady_collator = SteadyCollator(given, self.args.seed)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = given

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return `Trainer`'s micro-batches of an optimizer step, and record their total size."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step = self._size_of(batches) if batches and self._splits_steps else None
        return batches, items

    @property
    def _splits_steps(self) -> bool:
        """Whether an optimizer step may have several micro-batches whose losses are added up here."""
        several = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        return several and self.args.n_gpu <= 1

    def _size_of(self, batches: list[Any]) -> StepSize:
        size = sum((StepSize.of(self.student, batch) for batch in batches[1:]), StepSize.of(self.student, batches[0]))
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            counts = [size.rows, -1 if size.counted is None else size.counted]
            rows, counted = self.accelerator.gather(torch.tensor([counts], device=self.args.device)).unbind(1)
            size = StepSize(rows.sum(), None if (counted < 0).any() else counted.sum())
        return size

    def _part(
        self, loss: Tensor, inputs: Mapping[str, Any], reduction: Reduction = "labels", step: StepSize | None = None
    ) -> Tensor:
        """Return the loss of this micro-batch as a part of the step's: the parts add up to the loss of one batch.

        Args:
            loss: a mean over `reduction`.
            inputs: of the micro-batch.
            reduction: of the loss.
            step: the size of the step, if it does not count labels as the model's own loss does.
        """
        if self._step is None:
            return loss
        # `Trainer` divides by this what the model did not divide; a part must not be divided again.
        self.current_gradient_accumulation_steps = 1
        share = StepSize.of(self.student, inputs).share(step or self._step, reduction)
        averaged = self.args.average_tokens_across_devices  # gradients are averaged over processes but must add up
        return loss * share * self.accelerator.num_processes if averaged else loss * share

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch; the losses of an optimizer step add up to that of one large batch."""
        return self._own_loss(model, inputs, return_outputs, num_items_in_batch)

    def _own_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        """Return the loss of the model's own objective, scaled to its part of the optimizer step.

        `Trainer` leaves this to models that accept `num_items_in_batch`, and many (such as BERT) accept it without
        dividing by it; the losses of all others it divides by the number of micro-batches, sums as well as means.
        """
        if not model.training:
            if self.args.world_size > 1 and not shifts_labels(self.student):
                num_items_in_batch = None  # `Trainer` multiplies by the number of processes if the model did not divide
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        is_whole = self._step is None  # this batch is the step
        if is_whole or self.compute_loss_func is not None or self._reduction == "items":
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = self._without_nothing(loss, outputs, inputs)
        else:
            loss, outputs = self._loss_of_part(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_part(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return the loss of one micro-batch of several, scaled to its part of the step, and the model's outputs."""
        size = StepSize.of(self.student, inputs)
        given = dict(inputs)
        if self.model_accepts_loss_kwargs and "labels" in inputs and size.counted is not None:
            # The mean of this micro-batch, scaled below; without any label it is 0, not NaN.
            given["num_items_in_batch"] = torch.as_tensor(size.counted).clamp(min=1)
        loss, outputs = super().compute_loss(model, given, return_outputs=True)
        loss = self._without_nothing(loss, outputs, inputs)
        return self._part(loss, inputs, self._reduction or "labels"), outputs

    def _without_nothing(self, loss: Tensor, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """Return `loss`, or 0 if there is no label: the mean over nothing is NaN."""
        self._is_finite = bool(torch.isfinite(loss))  # the one time that a step waits for its loss
        if self._is_finite or not has_no_label(self.student, inputs):
            return loss
        made = [tensor for tensor in output_tensors(outputs) if tensor.requires_grad and bool(tensor.isfinite().all())]
        return torch.stack([tensor.sum() * 0.0 for tensor in made]).sum() if made else torch.zeros_like(loss)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward; refuse a loss that is not finite."""
        self._is_finite = False
        loss = self._micro_batch(model, inputs, num_items_in_batch)
        step = self.state.global_step
        kept = None if self._good is None else self._good.step
        if self._good is not None and kept is not None and not self._good.is_of(self._trained()):
            self._keep_weights()  # the model has shrunk since; its weights come from a step with a finite loss
        if not self._is_finite and not torch.isfinite(loss):
            self._go_back(float(loss))
        if kept is None or (step != kept and step % self._keep_every() == 0):
            self._keep_weights()
        return loss

    def _tried_reduction(self, inputs: dict[str, Any]) -> Reduction:
        """Return how the loss of the model is reduced, the same in every process."""
        if self.label_smoother is not None and "labels" in inputs:  # Trainer's own loss, a mean over labels
            return "items" if self.model_accepts_loss_kwargs else "labels"
        batch, takes_items = self._prepare_inputs(inputs), self.model_accepts_loss_kwargs
        found = find_reduction(self.model, self.student, batch, takes_items=takes_items)
        return broadcast_object_list([found])[0] if self.args.world_size > 1 else found

    def _micro_batch(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        if self._step is not None and self._reduction is None and self.compute_loss_func is None:
            self._reduction = self._tried_reduction(inputs)
        with nullcontext() if self.dropout else without_dropout(self.student):
            return super().training_step(model, inputs, num_items_in_batch)

    def _begin(self) -> None:
        """Prepare one training; `Trainer` may have exchanged the model."""
        self._drop_good()
        self._good = last_good(self.keep_last_good, Path(self.args.output_dir or "."), self.args.process_index)
        self._reduction = None

    def _keep_weights(self) -> None:
        if self._good is not None:
            self._good.keep(self.state.global_step, self._trained())

    def _drop_good(self) -> None:
        if self._good is not None:
            self._good.drop()
            self._good = None

    def _go_back(self, loss: float) -> None:
        step = self.state.global_step
        if self._good is None:
            state = (
                "No copy of better weights was kept (keep_last_good=None), so the model has the last ones: go on from "
                f"a checkpoint in {self.args.output_dir}, or keep a copy."
            )
        elif self._good.step is None:
            self._back_at = 0
            state = "No step had a finite loss, so the weights are those before training."
        else:
            self._back_at = self._good.step
            self._good.restore()
            state = f"The model is back at its weights after step {self._back_at}, whose loss was finite."
        raise TrainingError(
            f"The loss became {loss} after {step} of {self.state.max_steps} steps, and training stopped. {state} "
            f"Lower {self.rates}, or check the data for empty batches."
        )

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _keep_every(self) -> int:
        # logging_steps below 1 is a share of all steps; Trainer has resolved it in its state by now.
        return max(1, int(self.state.logging_steps or 1))


class _TrainingBegins(TrainerCallback):
    """Informs the trainer that a training begins, and the training collator which epoch begins."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.next = int(state.epoch or 0)
        self.trainer._begin()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer._step = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.steady_collator.epoch = self.next
        self.next += 1
