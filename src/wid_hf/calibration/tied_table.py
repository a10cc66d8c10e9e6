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
RIDGE = 1e-6


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


def fit_table(map_: Tensor, factors: Tensor, bias: Tensor, moments: Tensor, gram: Tensor) -> TiedTable:
    """Return the columns C and the vector w that minimise both errors of the narrow table.

    `C, w = argmin |E C - E T^T|^2 / |E T^T|^2 + s E|E C (w * z) - E g * A z|^2 / E|E g * A z|^2`: the first is that
    of the rows, which should be the turned rows; the second that of the scores, with z the student's normalised stream,
    `A z` the best estimate of the teacher's, g its norm's weight, and s = `SCORES`. Solved for C and w in turns; E
    occurs in `E^T E` only.

    Args:
        map_: T `(k, n)` of the stream.
        factors: g `(n,)`.
        bias: of the teacher's norm `(n,)`.
        moments: second moments of the teacher's normalised stream `(n, n)`.
        gram: `E^T E (n, n)` of the table, about the mean of its rows: a softmax does not see the mean.
    """
    plain = map_.T
    inner = map_ @ moments @ plain  # moments of the student's stream
    lift = torch.linalg.solve(_regular(inner), map_ @ moments).T  # A
    scored = factors[:, None] * lift
    a = 1 / (plain * (gram @ plain)).sum()
    b = SCORES / ((scored @ inner) * (gram @ scored)).sum()
    columns = plain
    vector = _vector(columns, scored, inner, gram).abs().mean().expand(len(map_))
    identity = torch.eye(len(map_), dtype=map_.dtype, device=map_.device)
    for _ in range(ROUNDS):
        normal = b * vector[:, None] * inner * vector + a * identity
        wanted = a * plain + b * (scored @ inner) * vector
        columns = torch.linalg.solve(normal, wanted.T).T
        vector = _vector(columns, scored, inner, gram)
    own = columns.T @ gram @ columns
    constant = torch.linalg.solve(_regular(own), columns.T @ (gram @ bias))
    return TiedTable(columns, vector, constant)


def _vector(columns: Tensor, scored: Tensor, inner: Tensor, gram: Tensor) -> Tensor:
    """Return the best w for columns: least squares of `E C diag(w)` towards `E g A` in the metric of the stream."""
    normal = (columns.T @ gram @ columns) * inner
    wanted = ((columns.T @ gram @ scored) * inner).sum(1)
    return torch.linalg.solve(_regular(normal), wanted)


def _regular(matrix: Tensor) -> Tensor:
    return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
