"""What one training step holds in memory, part by part.

Takes a trainer; counts, during one of its steps, every tensor on its device as it comes and goes. What an allocator or
a kernel takes for itself is not counted. Called by `forecast`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..budget.memory import Alive
from ..layers.stacked_fold import kept_stacks
from .student_trainer import StudentTrainer

TITLES = {
    "teacher": "teacher's weights",
    "student": "student's own weights, compactors and maps",
    "optimizer": "optimizer's states",
    "last_good": "copy of the last good weights",
    "fold_stacks": "stacks of folds, kept between steps",
    "gradients": "gradients",
    "activations": "activations, folds and what else a step needs at its peak",
}


@dataclass(frozen=True)
class StepMemory:
    """Bytes of each part at the peak of a step.

    Attributes:
        teacher: of the teacher's weights and buffers.
        student: of those of the student that are not the teacher's.
        optimizer: of the optimizer's states.
        last_good: of the copy of the last good weights, 0 if it is not on this device.
        fold_stacks: of what folds keep between steps, on a CPU.
        gradients: of the weights that train; 0 where the peak is reached before there are any.
        activations: of all else that is alive at the peak.
    """

    teacher: int
    student: int
    optimizer: int
    last_good: int
    fold_stacks: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(getattr(self, name) for name in TITLES)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the parts in MiB as text, after a header, with their sum."""
        parts = [(title, getattr(self, name)) for name, title in TITLES.items()]
        return [("", "MiB"), *((title, f"{size / 2**20:,.1f}") for title, size in [*parts, ("all", self.total)])]


class StepMemoryCounter(TrainerCallback):
    """Counts the memory of one step of a training.

    Args:
        trainer: to which this is added.
        model: the wid model: its teacher and its compactors are in memory, whatever trains.
        at: number of the step, from 2: the first one makes the optimizer's states.

    Attributes:
        found: the bytes; None until the step is done.
    """

    def __init__(self, trainer: StudentTrainer, model: PeftModel, at: int = 2) -> None:
        self.found: StepMemory | None = None
        self._trainer, self._model, self._at = trainer, model, at
        self._alive: Alive | None = None
        self._parts: dict[str, int] = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what is there already, and begin to count."""
        if state.global_step + 1 == self._at:
            self._alive = Alive()
            for name, tensors in self._held(kwargs["model"], kwargs["optimizer"]):
                self._parts[name] = self._alive.add(t for t in tensors if t.device.type == args.device.type)
            self._alive.__enter__()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the gradients: the optimizer needs all of them."""
        if self._alive is not None:
            gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
            self._parts["gradients"] = sum(each.nbytes for each in gradients)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the most that was alive at one time."""
        if self._alive is None:
            return
        self._alive.__exit__(None, None, None)
        rest = self._alive.most - sum(self._parts.values())
        if rest < 0:  # it was most before there were all gradients
            rest, self._parts["gradients"] = rest + self._parts["gradients"], 0
        self.found, self._alive = StepMemory(**self._parts, activations=rest), None

    def _held(self, model: nn.Module, optimizer: Any) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield what is alive between two steps; a tensor of two parts counts in the first."""
        good = self._trainer.last_good
        yield "teacher", [t for teacher in self._model.base_model.teachers for t in _tensors(teacher)]
        yield "student", [*_tensors(self._model), *_tensors(model)]
        yield "optimizer", [each for each in tree_leaves(dict(optimizer.state)) if isinstance(each, Tensor)]
        yield "last_good", [] if good is None else [*good.tensors]
        yield "fold_stacks", kept_stacks()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
