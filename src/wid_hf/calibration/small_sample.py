"""The fit of a weight input at which few positions are seen: of a pooler or a classifier, with one position a text.

Takes the positions of teacher and student and an earlier fit; gives a new fit, or none if the earlier one does better
on held-out positions. Called by `reconstruction`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import in_float64, place_of
from .moments import LinearFit, Regression, full

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
            return in_float64(y) @ in_float64(self.start).T
        return self.prior.predicted(self.start, self.ridge, intercept, y)

    def through(self, weight: Tensor) -> Known:
        """Return what is known of the output of `weight (m, n)`: a fit of that is the weight's product with one of x.

        There are fewer outputs than inputs where it matters, behind a wide block.
        """
        prior = self.prior.through(weight) if self.prior is not None else None
        return Known(weight @ self.start.to(weight), prior, self.ridge, self.enough)

    def shifted(self, x: Tensor, y: Tensor, intercept: bool) -> LinearFit:
        """Return the start's columns with the constant that fits `x (p, n)` to `y (p, k)` best."""
        columns = in_float64(self.start)
        means = x.mean(0).to(columns), y.mean(0).to(columns)
        offset = means[0] - columns @ means[1]
        return LinearFit(columns, offset if intercept else torch.zeros_like(offset))

    def with_positions(self, seen: Regression, trust: float) -> tuple[Regression, float]:
        """Return the moments of positions with `trust * enough` more from the earlier fit, and their ridge strength."""
        if self.prior is None:
            return seen, trust * self.enough / seen.count
        return seen.filled(self.prior, round(trust * self.enough)), self.ridge


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
    x, y = full(x), full(y)
    if min(FOLDS, len(x)) < 2:
        return None
    weight = weight.to(place_of(x.device), torch.float64)
    outputs, of_outputs = x.to(weight) @ weight.T, known.through(weight)
    errors = _held_out_errors(outputs, y, of_outputs, intercept)
    without = _squares(outputs - of_outputs.without_positions(y, intercept))
    best = min(errors.values(), key=lambda each: float(each.mean()))
    most = best.mean() + best.std() / len(x) ** 0.5
    if without.mean() <= most:
        return None
    trust = next(trust for trust, each in errors.items() if each.mean() <= most)
    if trust is None:
        return known.shifted(x, y, intercept)
    moments, ridge = known.with_positions(_seen(x, y), trust)
    return moments.solve(known.start, ridge, intercept)


def _held_out_errors(x: Tensor, y: Tensor, known: Known, intercept: bool) -> dict[float | None, Tensor]:
    """Return the error at every position when held out `(p,)`, by trust; None is the start with another constant."""
    parts = min(FOLDS, len(x))
    order = torch.arange(len(x), device=x.device) % parts
    found: dict[float | None, list[Tensor]] = {trust: [] for trust in (*WEIGHTS, None)}
    for part in range(parts):
        out = order == part
        seen, wanted, given = _seen(x[~out].to(y), y[~out]), x[out], y[out]
        for trust in WEIGHTS:
            moments, ridge = known.with_positions(seen, trust)
            found[trust].append(_squares(wanted - moments.predicted(known.start, ridge, intercept, given)))
        fit = known.shifted(x[~out], y[~out], intercept)
        found[None].append(_squares(wanted - given.to(fit.columns) @ fit.columns.T - fit.offset))
    return {trust: torch.cat(each) for trust, each in found.items()}


def _seen(x: Tensor, y: Tensor) -> Regression:
    found = Regression(x.shape[1], y.shape[1], x.device)
    found.add(x, y)
    return found


def _squares(missed: Tensor) -> Tensor:
    return missed.square().sum(1)
