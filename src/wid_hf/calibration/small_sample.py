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
    """Return a lift of the positions, or None if `known` alone does as well.

    Cross-validation over `FOLDS` parts of the positions tells how much is missed of what the reading weight makes of
    positions held out. Taken is the fit that leans most on what is known and misses no more than the best one and a
    standard error (Breiman et al. 1984): all lifts before were fitted to these very texts, so that a close fit looks
    better here than it is.

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
    order = torch.arange(len(x), device=x.device)
    missed = {
        weight: torch.cat([
            _missed(x[out], y[out], reader, known.fitted(x[~out], y[~out], weight, intercept))
            for out in (order % parts == part for part in range(parts))
        ])
        for weight in WEIGHTS
    }  # fmt: skip
    without = _missed(x, y, reader, known.lift(intercept))
    best = min(missed.values(), key=lambda each: float(each.mean()))
    most = best.mean() + best.std() / len(x) ** 0.5
    if without.mean() <= most:
        return None
    return known.fitted(x, y, max(weight for weight, each in missed.items() if each.mean() <= most), intercept)


def _missed(x: Tensor, y: Tensor, reader: Tensor, lift: Lift) -> Tensor:
    """Return per position the energy of what `reader` makes of the teacher's and not of the student's lifted one."""
    left = x.to(lift.columns) - y.to(lift.columns) @ lift.columns.T - lift.offset
    return (left @ reader.to(left).T).square().sum(1)
