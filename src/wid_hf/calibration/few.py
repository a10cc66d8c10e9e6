"""The lift of a read at which few positions are seen: a pooler or a classifier, with one position a text.

Takes the positions of teacher and student and what is known already; gives a lift, or none where what is known does
better on positions that a fit has not seen. Called by `lifts`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Lift, Regression

FOLDS = 4
WEIGHTS = (0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Known:
    """What a fit of few positions starts from.

    Attributes:
        start: columns `(n, k)` of the start.
        prior: the moments of the latest lift of the same dimension, if there is one.
        ridge: strength of the regularisation, a share of the mean variance.
        enough: how many positions would make a fit by themselves.
    """

    start: Tensor
    prior: Regression | None
    ridge: float
    enough: int

    def lift(self, intercept: bool) -> Lift:
        """Return the lift that is known without the few positions."""
        if self.prior is None:
            return Lift(self.start.double(), torch.zeros_like(self.start[:, 0], dtype=torch.float64))
        return self.prior.solve(self.start, self.ridge, intercept)

    def fitted(self, x: Tensor, y: Tensor, weight: float, intercept: bool) -> Lift:
        """Return the lift of positions `x (p, n)` and `y (p, k)`, as if `weight * enough` more agreed with it."""
        seen = Regression(x.shape[1], y.shape[1], x.device)
        seen.add(x, y)
        if self.prior is None:
            return seen.solve(self.start, weight * self.enough / seen.count, intercept)
        return seen.filled(self.prior, round(weight * self.enough)).solve(self.start, self.ridge, intercept)


def few_lift(x: Tensor, y: Tensor, reader: Tensor, known: Known, intercept: bool) -> Lift | None:
    """Return the lift that misses least of what a weight makes of positions held out, None if `known` alone does.

    Cross-validation over `FOLDS` parts of the positions chooses how much the known counts beside them.

    Args:
        x: what the teacher reads `(p, n)`.
        y: what the student reads `(p, k)`.
        reader: the weight that reads it `(m, n)`.
        known: the lift so far, and its moments.
        intercept: whether there is a bias to take over a constant.
    """
    x, y = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (x, y))
    parts = min(FOLDS, len(x))
    if parts < 2:
        return None
    missed = dict.fromkeys(WEIGHTS, 0.0)
    for part in range(parts):
        held_out = torch.arange(len(x), device=x.device) % parts == part
        for weight in WEIGHTS:
            fit = known.fitted(x[~held_out], y[~held_out], weight, intercept)
            missed[weight] += _missed(x[held_out], y[held_out], reader, fit)
    best = min(WEIGHTS, key=missed.__getitem__)
    if missed[best] >= _missed(x, y, reader, known.lift(intercept)):
        return None
    return known.fitted(x, y, best, intercept)


def _missed(x: Tensor, y: Tensor, reader: Tensor, lift: Lift) -> float:
    """Return the energy of what `reader` makes of the teacher's positions and not of the student's lifted ones."""
    left = x.to(lift.columns) - y.to(lift.columns) @ lift.columns.T - lift.offset
    return float((left @ reader.to(left).T).square().sum())
