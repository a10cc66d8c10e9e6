"""Distillation from the frozen teacher: the sum of terms, each of which compares one thing in student and teacher.

Takes a wid model whose teacher's weights do not train, and batches; gives a term for the training loss. The teacher
has the tensors that the student is folded from, so there is no second copy; all layers of it run where the student has
fewer. Called by `WidTrainer`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...calibration.batches import prepared
from ...coupling.trace import quiet_forward
from ...errors import TeacherError
from ..labelled_positions import LabelledPositions
from .counting import counted_positions, rows_of
from .hidden import HiddenTerm
from .logits import LogitsTerm
from .registry import DISTILLED, refuse_unknown
from .relations import RelationsTerm
from .term import Setup, Term
from .watching import Seen, watch

TERMS: dict[str, type[Term]] = {term.name: term for term in (LogitsTerm, HiddenTerm, RelationsTerm)}


class Distillation:
    """How far a student is from its teacher: means over the labels of a batch, or over its attended positions.

    Args:
        model: what `get_wid_model` returned; its teacher runs in evaluation mode, without gradients.
        losses: some of `"logits"`, `"hidden"`, `"relations"`; their sum is the term.
        temperature: of the logits.
        student: the merged student that trains in the place of the wid model's, which stays as it is for its maps.

    Attributes:
        terms: the losses that are added up.
        labelled: runs the teacher's head on labelled positions only; None if all positions are compared.

    Raises:
        ConfigError: an unknown loss.
        TeacherError: the teacher has no logits, hidden states or values that could be compared.
    """

    def __init__(
        self, model: PeftModel, losses: Collection[str], temperature: float = 2.0, student: nn.Module | None = None
    ) -> None:
        refuse_unknown(losses, DISTILLED, "distillation")
        self._wid = model.base_model
        self._student = student
        self.losses, self.temperature = tuple(losses), temperature
        kinds = [TERMS[name] for name in DISTILLED if name in losses]
        everywhere = any(kind.at_all_positions for kind in kinds)
        self.labelled = None if everywhere else LabelledPositions(self._wid.whole_teacher)
        setup = self._setup({name: value for kind in kinds for name, value in kind.forward_arguments.items()})
        self.terms = [kind(setup) for kind in kinds]

    def is_of(self, model: PeftModel, losses: Collection[str], temperature: float) -> bool:
        """Return whether it was made from these arguments."""
        return (model.base_model, tuple(losses), temperature) == (self._wid, self.losses, self.temperature)

    def watching(self) -> AbstractContextManager[Seen]:
        """Record inputs and outputs of the student's modules in the forward inside; then remove the hooks."""
        return watch(self._wid.model if self._student is None else self._student, *self._modules)

    @torch.no_grad()
    def target(self, inputs: Mapping[str, Any]) -> Seen:
        """Run the teacher in evaluation mode, its language-model head on labelled positions only if that is enough."""
        teacher = self._wid.whole_teacher.eval()
        picked = nullcontext(False) if self.labelled is None else self.labelled.only(inputs, together=True)
        with picked as labelled, watch(teacher, *self._modules, self._wid.teacher_place) as seen:
            seen.output = teacher(**prepared(teacher, inputs))
        seen.labelled = labelled
        return seen

    def loss(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the sum of the losses of one batch.

        Losses of whole rows (hidden states, relations) are weighted by the number of labels of a row. So every loss is
        a mean over labels, and those of micro-batches, each multiplied by its share of the labels, add up to the loss
        of one large batch.

        Args:
            student: from `watching`.
            teacher: from `target`.
            inputs: keyword arguments of both forwards.

        Raises:
            DataError: there is not one label for each row of logits.
            TrainingError: the student's forward lacks outputs that the teacher's has.
        """
        counted = counted_positions(self._wid.teacher, inputs)
        return torch.stack([term.of_batch(student, teacher, inputs, counted) for term in self.terms]).sum()

    @property
    def _modules(self) -> tuple[set[str], set[str]]:
        """The student's names of the modules whose inputs, and whose outputs, are compared."""
        of_inputs = {name for term in self.terms for name in term.input_modules}
        return of_inputs, {name for term in self.terms for name in term.output_modules}

    def _setup(self, arguments: Mapping[str, Any]) -> Setup:
        """Run the teacher once on the smallest example of its trace, and record inputs and outputs of every module.

        With gradients, so that modules are known that always run without.
        """
        teacher = self._wid.teacher
        inputs = prepared(teacher, self._wid.student_plan.trace.examples[0].inputs)
        modules = [path for path, _ in teacher.named_modules() if path]
        with quiet_forward(teacher), torch.enable_grad(), watch(teacher, modules, modules) as seen:
            seen.output = teacher(**inputs, **arguments)
        return Setup(self._wid, seen, rows_of(inputs), self.temperature)


def can_compare(model: PeftModel, losses: Collection[str]) -> bool:
    """Return whether the teacher of a wid model, perhaps not calibrated, has what these losses compare."""
    try:
        Distillation(model, losses)
    except TeacherError:
        return False
    return True
