"""The inputs of one weight in teacher and student, position by position.

Takes the operands of the forwards of both models, batch by batch; gives their joint moments, or nothing if positions
cannot be paired. Called by `reconstruction` and `norm_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from .batches import NOT_FINITE
from .forward_thread import Operand
from .lockstep import Operands
from .moments import Regression

PLENTY = 120  # positions per index of the student, after which a fit hardly changes
ENOUGH = 2  # positions per index of the student; with fewer a fit does not hold for other positions


@dataclass(frozen=True)
class PairedMoments:
    """Joint moments of the teacher's and the student's input of one weight.

    Attributes:
        regression: of the teacher's input on the student's.
        rows: the inputs `(positions, n)` and `(positions, k)`, if they are too few for a plain fit.
    """

    regression: Regression
    rows: tuple[Tensor, Tensor] | None


def paired_moments(
    teacher: Operands, student: Operands, *, size: int, most: float = PLENTY, root: Tensor | None = None
) -> PairedMoments | None:
    """Return the joint moments over all batches, or None where positions cannot be paired.

    Args:
        teacher: the teacher's operands, one per batch.
        student: the student's.
        size: number of indices of the student.
        most: for each of them, after that many positions no other batch counts.
        root: `(m, n)` by which the teacher's input is multiplied first.

    Raises:
        DataError: activations of either model are not finite.
    """
    regression = None
    few: list[tuple[Tensor, Tensor]] = []
    for mine, theirs in _pairs(teacher, student):
        x, y = mine.rows, theirs.rows
        if root is not None:
            x = x.to(root.dtype) @ root.T
        regression = regression or Regression(x.shape[1], y.shape[1], x.device)
        if regression.count >= most * size:
            _refuse_infinite(bool(x.sum().isfinite()), bool(y.sum().isfinite()))
            continue
        if regression.count < ENOUGH * size:
            few.append((x.clone(), y.clone()))  # operands of other batches are looked at before them
        regression.add(x, y)
    if regression is None:
        return None
    _refuse_infinite(*regression.is_finite())
    if regression.count >= ENOUGH * size:
        return PairedMoments(regression, None)
    of_teacher, of_student = zip(*few, strict=True)
    return PairedMoments(regression, (torch.cat(of_teacher), torch.cat(of_student)))


def _pairs(teacher: Operands, student: Operands) -> list[tuple[Operand, Operand]]:
    """Return both operands of each batch that has them; none where positions cannot be paired."""
    found = []
    for mine, theirs in zip(teacher, student, strict=True):
        if mine is None and theirs is None:
            continue
        if mine is None or theirs is None or mine.positions[1] != theirs.positions[1]:
            return []
        found.append((mine, theirs))
    return found


def _refuse_infinite(teacher: bool, student: bool) -> None:
    for who, is_finite in (("teacher", teacher), ("student", student)):
        if not is_finite:
            raise DataError(NOT_FINITE.format(who))
