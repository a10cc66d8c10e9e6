"""The fit of a weight input at which few positions are seen: of a pooler or a classifier, with one position a text.

Takes the positions of teacher and student and an earlier fit; gives a new fit, or none if the earlier one does better
on held-out positions. Called by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..arithmetic import in_float64
from .moments import LinearFit, Regression

FOLDS = 4
WEIGHTS = (100.0, 10.0, 1.0, 0.1)

Fitting = Callable[[Tensor, Tensor], LinearFit]


@dataclass(frozen=True)
class Known:
    """What is known before the few positions are seen.

    Attributes:
        start: columns `(n, k)` of the start.
        prior: the moments of the latest fit of the same dimension, if there is one.
        ridge: ridge strength, relative to the mean variance.
        enough: how many positions would be enough for a plain fit.
    """

    start: Tensor
    prior: Regression | None
    ridge: float
    enough: int

    def without_positions(self, intercept: bool) -> LinearFit:
        """Return the fit without the few positions."""
        if self.prior is None:
            return LinearFit(start := in_float64(self.start), torch.zeros_like(start[:, 0]))
        return self.prior.solve(self.start, self.ridge, intercept)

    def shifted(self, x: Tensor, y: Tensor, intercept: bool) -> LinearFit:
        """Return the start's columns with the constant that fits `x (p, n)` to `y (p, k)` best."""
        columns = in_float64(self.start)
        means = x.mean(0).to(columns), y.mean(0).to(columns)
        offset = means[0] - columns @ means[1]
        return LinearFit(columns, offset if intercept else torch.zeros_like(offset))

    def fitted(self, x: Tensor, y: Tensor, weight: float, intercept: bool) -> LinearFit:
        """Return the fit of `x (p, n)` to `y (p, k)`, with `weight * enough` more positions from the earlier fit."""
        seen = Regression(x.shape[1], y.shape[1], x.device)
        seen.add(x, y)
        if self.prior is None:
            return seen.solve(self.start, weight * self.enough / seen.count, intercept)
        return seen.filled(self.prior, round(weight * self.enough)).solve(self.start, self.ridge, intercept)


def fit_few(x: Tensor, y: Tensor, weight: Tensor, known: Known, intercept: bool) -> LinearFit | None:
    """Return a fit of the positions, or None if `known` does as well without them.

    Cross-validation over `FOLDS` parts of the positions gives the error of the weight's output at held-out positions.
    The start with another constant is one of the fits: the positions may be of another kind than those of the earlier
    fit (a token that is pooled).
    The fit that trusts `known` most is used, among those with an error of at most the best one's plus its standard
    error (Breiman et al. 1984): earlier fits used the same texts, so a close fit looks better here than it is.

    Args:
        x: the teacher's input of the weight `(p, n)`.
        y: the student's `(p, k)`.
        weight: the weight `(m, n)`.
        known: the fit so far, and its moments.
        intercept: whether there is a bias that can take over a constant.
    """
    x, y = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (x, y))
    if min(FOLDS, len(x)) < 2:
        return None
    fits: list[Fitting] = [partial(known.fitted, weight=trust, intercept=intercept) for trust in WEIGHTS]
    fits.append(partial(known.shifted, intercept=intercept))
    errors = [_held_out_errors(x, y, weight, fit) for fit in fits]
    without = _errors(x, y, weight, known.without_positions(intercept))
    best = min(errors, key=lambda each: float(each.mean()))
    most = best.mean() + best.std() / len(x) ** 0.5
    if without.mean() <= most:
        return None
    return next(fit(x, y) for fit, each in zip(fits, errors, strict=True) if each.mean() <= most)


def _held_out_errors(x: Tensor, y: Tensor, weight: Tensor, fit: Fitting) -> Tensor:
    """Return the error at every position when held out `(p,)`."""
    parts = min(FOLDS, len(x))
    order = torch.arange(len(x), device=x.device)
    held_out = [order % parts == part for part in range(parts)]
    return torch.cat([_errors(x[out], y[out], weight, fit(x[~out], y[~out])) for out in held_out])


def _errors(x: Tensor, y: Tensor, weight: Tensor, fit: LinearFit) -> Tensor:
    """Return per position the squared error of the weight's output when the student's input is mapped by `fit`."""
    left = x.to(fit.columns) - y.to(fit.columns) @ fit.columns.T - fit.offset
    return (left @ weight.to(left).T).square().sum(1)
