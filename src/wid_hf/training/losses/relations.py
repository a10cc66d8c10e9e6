"""Distillation of relations: which positions the last layer's values resemble, in student and teacher (MiniLM)."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, sqrt
from typing import Any

import torch
from torch import Tensor

from .counting import attended_positions, full, rows_of
from .heads import Rows, value_rows
from .logits import divergence
from .term import RowTerm, Setup
from .watching import Seen, pairs


class RelationsTerm(RowTerm):
    """`relation_loss` of the values of the last layer that both models ran: training may skip layers (layerdrop).

    Attributes:
        values: for each layer in order, the module that returns values, and which of its outputs they are.

    Raises:
        TeacherError: no module of the teacher returns values as `(batch, positions, width)`.
    """

    name = "relations"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        returned = {name for (name, _), tensor in setup.seen.returned.items() if setup.is_batch(tensor)}
        returned -= setup.seen.detached
        self.values: list[Rows] = [values for values in value_rows(setup.wid.plan) if values[0] in returned]
        if not self.values:
            setup.refuse(self.name, "has no attention whose values are returned as (batch, positions, width)")

    @property
    def output_modules(self) -> set[str]:
        """The modules that return values."""
        return {name for name, *_ in self.values}

    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss of each row; 0 if no layer ran in both models."""
        shown = {name: both for (name, _), both in pairs(student, student.returned, teacher.returned).items()}
        ran = [values for values in self.values if values[0] in shown]
        if not ran:
            return torch.zeros(rows_of(inputs), device=self.device)
        name, *ranges = ran[-1]
        mine, theirs = shown[name]
        # A student that is still wide has the teacher's range.
        of_student, of_teacher = (
            next(each for each in ranges if each.width == tensor.shape[-1]) for tensor in (mine, theirs)
        )
        return relation_loss(
            mine[..., of_student.start : of_student.stop],
            theirs[..., of_teacher.start : of_teacher.stop],
            attended_positions(self.wid.teacher, theirs, inputs),
            gcd(of_student.heads, of_teacher.heads),
        )


def relation_loss(student: Tensor, teacher: Tensor, attended: Tensor, heads: int) -> Tensor:
    """Return per row `(b,)` the mean of `KL(VR_teacher || VR_student)` over attended positions and relation heads.

    `VR = softmax(V V^T / sqrt(d))` per relation head, over attended positions; `d` is the width that a relation head
    has in that model. Source: Wang et al., MiniLM (arXiv 2002.10957), equations 7 and 8, and MiniLMv2
    (arXiv 2012.15828), section 3.1, for relation heads that are not the attention's.

    Args:
        student: values `(b, s, k)`; `k` is a multiple of `heads`.
        teacher: values `(b, s, n)`; `n` is a multiple of `heads`.
        attended: `(b, s)`.
        heads: number of relation heads.
    """
    mine, theirs = (_relations(full(values), attended, heads) for values in (student, teacher))
    by_position = divergence(theirs, mine).mean(1) * attended  # (b, s)
    return by_position.sum(1) / attended.sum(1).clamp(min=1)


def _relations(values: Tensor, attended: Tensor, heads: int) -> Tensor:
    """Return logarithms of the value relations `(b, heads, s, s)`."""
    split = values.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.mT / sqrt(split.shape[-1])
    return scores.masked_fill(~attended[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)
