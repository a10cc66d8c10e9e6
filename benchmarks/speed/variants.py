"""The six ways to take one optimizer step that are compared.

Takes a case, gives models with their optimizers; each has a teacher of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from activations import in_activation_space
from cases import WIDE, Batch, Case
from peft import PeftModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wid_hf import get_wid_model
from wid_hf.layers import FoldCache, FoldedWeight, FoldPolicy
from wid_hf.training.labelled_positions import LabelledPositions

LEARNING_RATE = 1e-5


class Variant:
    """A model that trains: forward, backward, AdamW step, gradients freed.

    Args:
        case: says how.
        model: what is called with a batch and returns a loss.
        folds: the model's weights are folded once for the whole step, as `WidTrainer` does it.
        after: called with the number of steps after each.
    """

    def __init__(
        self, case: Case, model: nn.Module, *, folds: FoldCache | None = None, after: Callable[[int], Any] | None = None
    ) -> None:
        self.case, self.model, self.folds, self.after = case, model, folds, after
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Trainer's default optimizer; it keeps no state of what is frozen.
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, fused=True)
        self.labelled = LabelledPositions(model) if case.logits == "labelled" else None
        self.steps = 0

    def compile(self) -> None:
        """Run the model through `torch.compile` from now on."""
        self.model.compile(mode=self.case.compile_mode)

    def step(self, batches: Sequence[Batch]) -> None:
        """Take one optimizer step on micro-batches."""
        if self.folds is not None:
            self.folds.keep(FoldPolicy.for_step(None if self.case.compiled else self.case.tokens))
        for at, batch in enumerate(batches, 1):
            if self.folds is not None and at == len(batches):
                self.folds.open()
            self.loss(batch).div(len(batches)).backward()
        if self.folds is not None:
            self.folds.release()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.after is not None:
            self.after(self.steps)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of one micro-batch."""
        device = batch["input_ids"].device.type
        if self.case.compile_mode != "default":  # outputs of the recorded graph before may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16, enabled=self.case.dtype == "bf16"), self._on_labels(batch):
            return self.model(**batch).loss

    def counted_step(self, batches: Sequence[Batch]) -> int:
        """Take one step and return the floating-point operations of its products."""
        with self._on_labels(batches[0]) as holds:  # its trial, which comes once in a training, is not counted
            if self.labelled is not None and not holds:
                raise RuntimeError(f"The head of {type(self.model).__name__} does not run on labelled positions only.")
        with FlopCounterMode(display=False) as counter:
            self.step(batches)
        return counter.get_total_flops()

    def _on_labels(self, batch: Batch) -> AbstractContextManager[bool | None]:
        return nullcontext() if self.labelled is None else self.labelled.only(batch)


def bare(case: Case, device: torch.device) -> Variant:
    """The student as a stock model of its own."""
    return Variant(case, _narrow(case, device).merge_and_unload().train())


def narrow(case: Case, device: torch.device) -> Variant:
    """The student, folded from the teacher."""
    model = _narrow(case, device)
    return Variant(case, model, folds=FoldCache(model.base_model.model))


def wide(case: Case, device: torch.device) -> Variant:
    """The progressive training's wide phase, all choices made and rows fading."""
    model = _wid(case, device, schedule=WIDE)
    variant = Variant(case, model, folds=FoldCache(model.base_model.model), after=model.base_model.wid_step)
    model.base_model.wid_begin(optimizer=variant.optimizer)
    return variant


def activations(case: Case, device: torch.device) -> Variant:
    """The student in activation space."""
    return Variant(case, in_activation_space(_narrow(case, device)))


def reference(case: Case, device: torch.device) -> Variant:
    """The wide phase in activation space, without its bookkeeping: square compactors around every weight."""
    return Variant(case, in_activation_space(_wid(case, device, schedule=WIDE)))


def teacher(case: Case, device: torch.device) -> Variant:
    """The teacher itself, all of it trained."""
    return Variant(case, case.sizes.teacher(device))


VARIANTS: dict[str, Callable[[Case, torch.device], Variant]] = {
    "bare": bare,
    "narrow": narrow,
    "wide": wide,
    "activations": activations,
    "reference": reference,
    "teacher": teacher,
}
STOCK = {"narrow": "bare", "wide": "teacher"}  # the same shapes without a fold
BARE, NARROW = "bare", "narrow"


def _narrow(case: Case, device: torch.device) -> PeftModel:
    return _wid(case, device, init="identity", selection="first")


def _wid(case: Case, device: torch.device, **settings: Any) -> PeftModel:
    model = get_wid_model(case.sizes.teacher(device), case.sizes.student(**settings)).train()
    if case.teacher == "frozen":
        compactors = {p for module in model.modules() if isinstance(module, FoldedWeight) for p in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in compactors)
    return model
