"""A table that is looked up and also scores: its columns fitted to both uses.

Only a norm's vector w stands between the two, so one narrow table cannot serve both exactly. Pure functions of tensors;
called by `stream_rotation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCORES = 10.0  # how much more an error of the scores counts than one of the looked-up rows, each relative to its energy
ROUNDS = 3  # of fitting columns and vector in turns
RIDGE = 1e-4


@dataclass(frozen=True)
class TiedTable:
    """A narrow table `E C`, and the vector before it.

    Attributes:
        columns: C `(n, k)`.
        vector: w `(k,)`: the student's scores are `E C (w * z + b)`.
        bias: b `(k,)`, already multiplied by w.
    """

    columns: Tensor
    vector: Tensor
    bias: Tensor


def fit_table(
    map_: Tensor, factors: Tensor, bias: Tensor, mean: Tensor, moments: Tensor, looked_up: Tensor, gram: Tensor
) -> TiedTable:
    """Return the columns C and the vector w that minimise both errors of the narrow table.

    `C, w = argmin E|(C - T^T)^T x|^2 / E|T x|^2 + s E|E C (w * z) - E g * A z|^2 / E|E g * A z|^2`. The first is the
    error of what is looked up, which should be turned as everything is; the second that of the scores, with z the
    student's normalised stream, `A z` the best estimate of the teacher's, g its norm's weight, and s = `SCORES`. Solved
    for C (a Sylvester equation) and w in turns.

    Args:
        map_: T `(k, n)` of the stream.
        factors: g `(n,)`.
        bias: of the teacher's norm `(n,)`.
        mean: of the teacher's normalised stream before the scores `(n,)`, if `bias` can hold a constant; else zero.
        moments: second moments of that stream about the mean `(n, n)`.
        looked_up: the same of the sum of what is looked up, x `(n, n)`.
        gram: `E^T E (n, n)` of the table, about the mean of its rows: a softmax does not see the mean.
    """
    gram = _regular(gram)
    inner = map_ @ moments @ map_.T  # moments of the student's stream
    lift = torch.linalg.solve(_regular(inner), map_ @ moments).T  # A
    scored = factors[:, None] * lift
    rows = looked_up / (map_ @ looked_up @ map_.T).trace()
    rows = rows + RIDGE * rows.trace() / gram.trace() * gram  # nothing is known of directions that are never looked up
    scores = SCORES / ((scored @ inner) * (gram @ scored)).sum() * gram
    equation = _Sylvester(rows, scores)
    columns = map_.T
    vector = _vector(columns, scored, inner, gram).abs().mean().expand(len(map_))
    for _ in range(ROUNDS):
        right = rows @ map_.T + scores @ (scored @ inner) * vector
        columns = equation.solve(vector[:, None] * inner * vector, right)
        vector = _vector(columns, scored, inner, gram)
    own = columns.T @ gram @ columns
    lost = factors * mean + bias - columns @ (vector * (map_ @ mean))
    constant = torch.linalg.solve(_regular(own), columns.T @ (gram @ lost))
    return TiedTable(columns, vector, constant)


class _Sylvester:
    """The equation `A C + B C M = R` for C, with A and B `(n, n)` symmetric, B positive definite."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self._root = torch.linalg.cholesky(b)
        whitened = torch.linalg.solve_triangular(self._root, a, upper=False)
        whitened = torch.linalg.solve_triangular(self._root, whitened.T, upper=False)
        self._values, self._vectors = torch.linalg.eigh((whitened + whitened.T) / 2)

    def solve(self, m: Tensor, right: Tensor) -> Tensor:
        """Return C for a symmetric `m (k, k)`, positive semi-definite, and `right (n, k)`."""
        values, vectors = torch.linalg.eigh(m)
        right = self._vectors.T @ torch.linalg.solve_triangular(self._root, right, upper=False) @ vectors
        found = right / (self._values.clamp(min=0)[:, None] + values.clamp(min=0))
        return torch.linalg.solve_triangular(self._root.T, self._vectors @ found @ vectors.T, upper=True)


def _vector(columns: Tensor, scored: Tensor, inner: Tensor, gram: Tensor) -> Tensor:
    """Return the best w for columns: least squares of `E C diag(w)` towards `E g A` in the metric of the stream."""
    normal = (columns.T @ gram @ columns) * inner
    wanted = ((columns.T @ gram @ scored) * inner).sum(1)
    return torch.linalg.solve(_regular(normal), wanted)


def _regular(matrix: Tensor) -> Tensor:
    return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
