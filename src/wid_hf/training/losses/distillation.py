"""Distillation from the frozen teacher: the sum of terms, each of which compares one thing in student and teacher.

Takes a wid model whose teacher's weights do not train, and batches; gives a term for the training loss. The teacher
is the very tensors that the student is folded from, so there is no second copy. Called by `WidTrainer`.
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

    Attributes:
        terms: the losses that are added up.
        labelled: how the teacher's head is kept to labelled positions; None where all positions of it are compared.

    Raises:
        ConfigError: an unknown loss.
        TeacherError: the teacher has no logits, hidden states or values that could be compared.
    """

    def __init__(self, model: PeftModel, losses: Collection[str], temperature: float = 2.0) -> None:
        refuse_unknown(losses, DISTILLED, "distillation")
        self._wid = model.base_model
        self.losses, self.temperature = tuple(losses), temperature
        kinds = [TERMS[name] for name in DISTILLED if name in losses]
        everywhere = any(kind.at_all_positions for kind in kinds)
        self.labelled = None if everywhere else LabelledPositions(self._wid.teacher)
        setup = self._setup({name: value for kind in kinds for name, value in kind.asks.items()})
        self.terms = [kind(setup) for kind in kinds]

    def is_of(self, model: PeftModel, losses: Collection[str], temperature: float) -> bool:
        """Return whether it was made from these."""
        return (model.base_model, tuple(losses), temperature) == (self._wid, self.losses, self.temperature)

    def watching(self) -> AbstractContextManager[Seen]:
        """Note what the student reads and returns in the forward inside; leave no hook behind."""
        return self._watched(self._wid.model)

    @torch.no_grad()
    def target(self, inputs: Mapping[str, Any]) -> Seen:
        """Run the teacher, in evaluation mode, its language-model head on labelled positions only where that does."""
        teacher = self._wid.teacher.eval()
        picked = nullcontext(False) if self.labelled is None else self.labelled.only(inputs, together=True)
        with picked as labelled, self._watched(teacher) as seen:
            seen.output = teacher(**prepared(teacher, inputs))
        seen.labelled = labelled
        return seen

    def loss(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the sum of the losses of one batch.

        What belongs to a row as a whole (hidden states, relations) counts as often as the row has labels. So every
        loss is a mean over labels, and those of micro-batches, each multiplied by its part of the labels, add up to
        that of one large batch.

        Args:
            student: what its forward showed `watching`.
            teacher: what `target` showed.
            inputs: keyword arguments of both forwards.

        Raises:
            DataError: labels that do not go with the logits one by one.
            TrainingError: the student's forward did not show what the teacher's did.
        """
        counted = counted_positions(self._wid.teacher, inputs)
        return torch.stack([term.of_batch(student, teacher, inputs, counted) for term in self.terms]).sum()

    def _watched(self, model: nn.Module) -> AbstractContextManager[Seen]:
        reading = {name for term in self.terms for name in term.reading}
        returning = {name for term in self.terms for name in term.returning}
        return watch(model, reading, returning)

    def _setup(self, asked: Mapping[str, Any]) -> Setup:
        """Run the teacher once on the smallest example of its trace, and note what every module reads and returns."""
        teacher = self._wid.teacher
        inputs = prepared(teacher, self._wid.student_plan.trace.examples[0].inputs)
        modules = [path for path, _ in teacher.named_modules() if path]
        with quiet_forward(teacher), watch(teacher, modules, modules) as seen:
            seen.output = teacher(**inputs, **asked)
        return Setup(self._wid, seen, rows_of(inputs), self.temperature)
