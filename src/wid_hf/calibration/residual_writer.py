"""A weight before a residual sum: what it is in the student now, and how a solution is written into it.

Takes moments of what weights should add, sets their compactors and the shift of a bias. Called by `residual_fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import in_float64
from ..coupling.weight_inputs import WeightInput
from ..layers import Compactor, FoldedWeight
from .moments import Regression, as_matrix


@dataclass(frozen=True)
class Writer:
    """A weight whose output is added to the stream.

    Attributes:
        at: number of its input.
        factor: of its output.
        weight_input: its input.
        weight: the teacher's.
        folded: the student's.
        rows: its compactor onto the stream `(k, n)`.
        columns: its compactor of the input, or None if that does not shrink.
        original_bias: the teacher's, or None.
        bias: the student's if it is folded, or None.
    """

    at: int
    factor: float
    weight_input: WeightInput
    weight: Tensor
    folded: FoldedWeight
    rows: Compactor
    columns: Compactor | None
    original_bias: Tensor | None
    bias: FoldedWeight | None

    @property
    def original(self) -> Tensor:
        """The teacher's weight as `(n, inputs)`."""
        return as_matrix(self.weight, self.weight_input.axis)

    @property
    def shift(self) -> Tensor | None:
        """The shift of the student's bias `(k,)`, or None if it has none."""
        return self.bias.shift if self.bias is not None else None

    @property
    def width(self) -> int:
        """Columns of what is fitted: the student's inputs, or the teacher's outputs if its inputs do not shrink."""
        return len(self.columns.matrix) if self.columns is not None else self.rows.matrix.shape[1]

    def start(self) -> Tensor:
        """Return what is fitted as it is now `(k, width)`, float64."""
        return in_float64(self.matrix() if self.columns is not None else self.rows.matrix)

    def matrix(self) -> Tensor:
        """Return the student's weight as `(k, inputs)`, float32 or more."""
        return as_matrix(self.folded.mapped(self.weight.to(self.rows.matrix.dtype)), self.weight_input.axis)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the student's weight as `(k, inputs)` and its bias `(k,)`, zeros if it has none."""
        matrix = self.matrix()
        constant = torch.zeros_like(matrix[:, 0])
        if self.original_bias is None:
            return matrix, constant
        bias = self.bias.fold(self.original_bias) if self.bias is not None else self.original_bias
        return matrix, bias.to(matrix) + constant

    def write(self, found: Tensor) -> None:
        """Make the student's weight, or its compactor of rows, `found (k, width)`."""
        if self.columns is None:
            self.rows.matrix.copy_(found.to(self.rows.matrix))
            return
        across = in_float64(self.rows.matrix) @ in_float64(self.original)
        change = found.to(across) - across @ in_float64(self.columns.matrix).T
        inverse = torch.linalg.pinv(across @ across.T, rtol=1e-10, hermitian=True)
        self.columns.matrix.add_((change.T @ inverse @ across).to(self.columns.matrix))


def write(writers: Sequence[Writer], regression: Regression, ridge: float) -> None:
    """Solve for all weights before a sum, and write the solution into them and into the first shift of their biases.

    Args:
        writers: the weights.
        regression: of what they should add `(k)` on their inputs, side by side.
        ridge: strength towards what they are, relative to the mean variance of the inputs.
    """
    holder = next((each for each in writers if each.shift is not None), None)
    start = torch.cat([each.start() for each in writers], 1)
    fit = regression.solve(start, ridge, holder is not None)
    for writer, found in zip(writers, fit.columns.split([each.width for each in writers], 1), strict=True):
        writer.write(found)
    if holder is not None:
        assert holder.shift is not None
        total = sum(each.factor * in_float64(each.affine()[1]) for each in writers)
        holder.shift.add_(((fit.offset - total) / holder.factor).to(holder.shift))
