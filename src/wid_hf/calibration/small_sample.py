"""The fit of a weight input at which few positions are seen: of a pooler or a classifier, with one position a text.

Takes the positions of teacher and student and an earlier fit; gives a new fit, or none if the earlier one does better
on held-out positions. Called by `reconstruction`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import LinearFit, Regression

FOLDS = 4
WEIGHTS = (100.0, 10.0, 1.0, 0.1)


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

    def without_positions(self, y: Tensor, intercept: bool) -> Tensor:
        """Return what the fit without the few positions makes of `y (p, k)`: `(p, n)`."""
        if self.prior is None:
            return y.double() @ self.start.double().T
        return self.prior.predicted(self.start, self.ridge, intercept, y)

    def shifted(self, x: Tensor, y: Tensor, intercept: bool) -> LinearFit:
        """Return the start's columns with the constant that fits `x (p, n)` to `y (p, k)` best."""
        columns = self.start.double()
        means = x.mean(0).to(columns), y.mean(0).to(columns)
        offset = means[0] - columns @ means[1]
        return LinearFit(columns, offset if intercept else torch.zeros_like(offset))

    def with_positions(self, x: Tensor, y: Tensor, trust: float) -> tuple[Regression, float]:
        """Return the moments of `x (p, n)` and `y (p, k)` with `trust * enough` more positions from the earlier fit.

        The second is the ridge strength for them.
        """
        seen = Regression(x.shape[1], y.shape[1], x.device)
        seen.add(x, y)
        if self.prior is None:
            return seen, trust * self.enough / seen.count
        return seen.filled(self.prior, round(trust * self.enough)), self.ridge


@dataclass(frozen=True)
class _Fit:
    """One way to fit the few positions: by how much the earlier fit is trusted, or with another constant alone."""

    known: Known
    intercept: bool
    trust: float | None

    def whole(self, x: Tensor, y: Tensor) -> LinearFit:
        """Return the fit of all positions."""
        if self.trust is None:
            return self.known.shifted(x, y, self.intercept)
        moments, ridge = self.known.with_positions(x, y, self.trust)
        return moments.solve(self.known.start, ridge, self.intercept)

    def held_out(self, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return what the fit of the positions that are not `out (p,)` makes of `y` at those that are."""
        if self.trust is None:
            fit = self.known.shifted(x[~out], y[~out], self.intercept)
            return y[out].to(fit.columns) @ fit.columns.T + fit.offset
        moments, ridge = self.known.with_positions(x[~out], y[~out], self.trust)
        return moments.predicted(self.known.start, ridge, self.intercept, y[out])


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
    weight = weight.to(x.device, torch.float64)
    fits = [_Fit(known, intercept, trust) for trust in (*WEIGHTS, None)]
    errors = [_held_out_errors(x, y, weight, fit) for fit in fits]
    without = _errors(x, known.without_positions(y, intercept), weight)
    best = min(errors, key=lambda each: float(each.mean()))
    most = best.mean() + best.std() / len(x) ** 0.5
    if without.mean() <= most:
        return None
    return next(fit.whole(x, y) for fit, each in zip(fits, errors, strict=True) if each.mean() <= most)


def _held_out_errors(x: Tensor, y: Tensor, weight: Tensor, fit: _Fit) -> Tensor:
    """Return the error at every position when held out `(p,)`."""
    parts = min(FOLDS, len(x))
    order = torch.arange(len(x), device=x.device)
    held_out = [order % parts == part for part in range(parts)]
    return torch.cat([_errors(x[out], fit.held_out(x, y, out), weight) for out in held_out])


def _errors(x: Tensor, made: Tensor, weight: Tensor) -> Tensor:
    """Return per position the squared error of the weight's output when its input is `made (p, n)` instead of `x`."""
    return ((x.to(made) - made) @ weight.to(made).T).square().sum(1)
