"""Running means and second moments: all that calibration stores of activations.

Takes rows of activations, gives covariances of one tensor and regressions of one tensor on another. Products are
formed batch by batch about the batch's own mean, in the precision of the activations but never less than float32,
and added up in float64 (Chan, Golub and LeVeque 1979, who show that this avoids cancellation).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from ..arithmetic import place_of

TINY = 1e-30
PANEL = 1024  # rows of a product that are formed at once: what is added up has room for little beside it
SPARSE = 8  # a matrix with fewer than one entry in so many is multiplied entry by entry


def full(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is if it has more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_matrix(weight: Tensor, axis: int) -> Tensor:
    """Return a weight as `(everything else, n)` for its axis of n indices."""
    return weight.movedim(axis, -1).reshape(-1, weight.shape[axis])


class Covariance:
    """Mean and second moments of `n` indices."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=place_of(device))
        self.about_mean = torch.zeros(size, size, dtype=torch.float64, device=place_of(device))

    def add(self, rows: Tensor) -> None:
        """Add observations `(rows, n)`."""
        if not len(rows):
            return
        mean, rows = _centred(rows)
        add_gram(self.about_mean, rows)
        count = self.count + len(rows)
        step = mean.to(self.mean) - self.mean
        self.about_mean.addr_(step, step, alpha=self.count * len(rows) / count)
        self.mean += step * (len(rows) / count)
        self.count = count

    def matrix(self, centred: bool) -> Tensor:
        """Return the covariance `(n, n)`, or the second moments about zero."""
        covariance = symmetric(self.about_mean / max(self.count, 1))
        return covariance if centred else covariance.addr_(self.mean, self.mean)


@dataclass(frozen=True)
class LinearFit:
    """The affine map `x_teacher = columns @ x_student + offset`: `(n, k)` and `(n,)`.

    `error` is the share of the teacher's energy that it misses on the moments that it was solved from, as in
    `Regression.error`; NaN if it comes from elsewhere.
    """

    columns: Tensor
    offset: Tensor
    error: float = nan


class Regression:
    """Joint second moments of `n` teacher indices and `k` student indices, observed at the same positions."""

    def __init__(self, teacher: int, student: int, device: torch.device) -> None:
        place = place_of(device)
        self.count = 0
        self.weight = 0.0  # of all positions: their number, unless some count more than others
        self.teacher = torch.zeros(teacher, dtype=torch.float64, device=place)
        self.student = torch.zeros(student, dtype=torch.float64, device=place)
        self.cross = torch.zeros(teacher, student, dtype=torch.float64, device=place)
        self.second = torch.zeros(student, student, dtype=torch.float64, device=place)
        self.energy = torch.zeros((), dtype=torch.float64, device=place)

    def add(self, teacher: Tensor, student: Tensor, weights: Tensor | None = None) -> None:
        """Add observations `(rows, n)` and `(rows, k)` of the same positions, all alike or by weights `(rows,)`."""
        if not len(teacher):
            return
        weight = float(len(teacher) if weights is None else weights.sum())
        (mean, teacher), (other, student) = _centred(teacher, weights), _centred(student, weights)
        energy = teacher.square().sum().to(self.energy)
        add_product(self.cross, teacher, student)
        add_gram(self.second, student)
        self.energy.add_(energy)
        self._join(len(teacher), weight, (mean.to(self.teacher), other.to(self.student)))

    def __iadd__(self, new: Regression) -> Regression:
        self.cross.add_(new.cross)
        self.second.add_(new.second)
        self.energy.add_(new.energy)
        self._join(new.count, new.weight, (new.teacher, new.student))
        return self

    def _join(self, count: int, weight: float, means: tuple[Tensor, Tensor]) -> None:
        """Join the means of `count` positions, whose moments about these means have been added, with those so far."""
        self.count += count
        total = self.weight + weight
        if not total:
            return
        share = weight / total
        teacher, student = means[0] - self.teacher, means[1] - self.student
        self.cross.addr_(teacher, student, alpha=self.weight * share)
        self.second.addr_(student, student, alpha=self.weight * share)
        self.energy.add_(teacher.square().sum(), alpha=self.weight * share)
        self.teacher.add_(teacher, alpha=share)
        self.student.add_(student, alpha=share)
        self.weight = total

    def is_finite(self) -> tuple[bool, bool]:
        """Return whether all observations of the teacher, and those of the student, are finite."""
        return bool(self.energy.isfinite()), bool(self.second.isfinite().all())

    def solve(self, start: Tensor, ridge: float, intercept: bool) -> LinearFit:
        """Return `argmin E|x_teacher - C x_student - c0|^2 + r |C - start|^2`, Tikhonov's ridge regression.

        `r` is `ridge` times the mean variance of the student's indices, so in directions without data (constant
        features) the fit stays at `start`.

        Args:
            start: `(n, k)`, towards which the solution shrinks.
            ridge: strength, a share of the mean variance.
            intercept: whether there is a `c0`; otherwise it is zero.
        """
        cross, second, energy = self._moments(intercept)
        columns = start = start.to(second)
        strength = float(ridge * second.diagonal().mean())
        missed = energy
        if strength > TINY:  # otherwise the activations never vary
            columns = _ridged(second, strength, (cross + strength * start).T).T
            # `columns @ second` is `cross + strength * (start - columns)`: the error needs no further product.
            missed = energy - (columns * cross).sum() + strength * (columns * (start - columns)).sum()
        offset = self.teacher - columns @ self.student if intercept else torch.zeros_like(self.teacher)
        return LinearFit(columns, offset, _share(missed, energy))

    def predicted(self, start: Tensor, ridge: float, intercept: bool, student: Tensor) -> Tensor:
        """Return what the fit of `solve` makes of the student's `(rows, k)`: `(rows, n)`, float64.

        It solves for the rows alone, which for few rows takes less than the fit itself.
        """
        cross, second, _ = self._moments(intercept)
        start, rows = start.to(second), student.to(second)
        strength = float(ridge * second.diagonal().mean())
        about = rows - self.student if intercept else rows
        made = about @ start.T
        if strength > TINY:
            weights = _ridged(second, strength, about.T).T
            made = weights @ cross.T + strength * (weights @ start.T)
        return made + self.teacher if intercept else made

    def filled(self, prior: Regression, count: int) -> Regression:
        """Return these moments as if `count` more positions with the covariances of `prior` had been seen.

        The means stay those of the positions seen here.
        """
        found = Regression(len(self.teacher), len(self.student), self.energy.device)
        share = count / (prior.weight or 1)
        found.count, found.weight = self.count + count, self.weight + count
        found.teacher, found.student = self.teacher, self.student
        found.cross = self.cross + share * prior.cross
        found.second = self.second + share * prior.second
        found.energy = self.energy + share * prior.energy
        return found

    def through(self, weight: Tensor) -> Regression:
        """Return the moments of the product of `weight (m, n)` with the teacher's indices; its energy is not known."""
        weight = weight.to(self.cross)
        found = Regression(0, 0, self.energy.device)
        found.count, found.weight = self.count, self.weight
        found.teacher, found.student = weight @ self.teacher, self.student
        found.cross, found.second, found.energy = weight @ self.cross, self.second, self.energy * nan
        return found

    def scales(self, columns: Tensor, ridge: float) -> Tensor:
        """Return `argmin E|x_teacher - C (f * x_student)|^2 + r |f - 1|^2 (k,)`: one factor per index of the student.

        With `S = E[x_student x_student^T]` the normal equations are `((C^T C) * S) f = diag(C^T E[x_teacher
        x_student^T])`, products `*` element by element.

        Args:
            columns: C `(n, k)`.
            ridge: `r` as a share of the mean diagonal of `(C^T C) * S`.
        """
        cross, second, _ = self._moments(False)
        columns = columns.to(second)
        normal = (columns.T @ columns) * second
        strength = ridge * normal.diagonal().mean()
        ones = torch.ones_like(second[0])
        if strength <= TINY:  # the activations never vary
            return ones
        missed = (columns * cross).sum(0) - normal @ ones
        return ones + _ridged(normal, float(strength), missed[:, None])[:, 0]

    def error(self, columns: Tensor, intercept: bool) -> float:
        """Return `E|x_teacher - C x_student - c0|^2 / E|x_teacher|^2` with the best `c0`, or none.

        With an intercept both are taken about the mean. 0 if the teacher's activations never vary.
        """
        cross, second, energy = self._moments(intercept)
        columns = columns.to(second)
        left = energy - 2 * (columns * cross).sum() + (_times(columns, second) * columns).sum()
        return _share(left, energy)

    def _moments(self, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.weight or 1
        cross, second, energy = self.cross / weight, symmetric(self.second / weight), self.energy / weight
        if not centred:
            cross.addr_(self.teacher, self.student)
            second.addr_(self.student, self.student)
            energy = energy + self.teacher.square().sum()
        return cross, second, energy


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left^T right (n, k)` of rows `(rows, n)` and `(rows, k)` to a sum in float64."""
    for start in range(0, left.shape[1], PANEL):
        part = slice(start, start + PANEL)
        total[part].add_((left[:, part].T @ right).to(total))


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add `rows^T rows (n, n)` to a sum in float64 of which the half above the diagonal counts; see `symmetric`."""
    for start in range(0, rows.shape[1], PANEL):
        part = slice(start, start + PANEL)
        total[part, start:].add_((rows[:, part].T @ rows[:, start:]).to(total))


def symmetric(total: Tensor) -> Tensor:
    """Copy what is above the diagonal of `total (n, n)` below it, in place, and return it."""
    for start in range(0, len(total), PANEL):
        part, behind = slice(start, start + PANEL), slice(start + PANEL, None)
        total[behind, part].copy_(total[part, behind].T)
    return total


def _share(missed: Tensor, energy: Tensor) -> float:
    return float((missed / energy).clamp(min=0)) if energy > TINY else 0.0


def _times(columns: Tensor, second: Tensor) -> Tensor:
    """Return `columns @ second`: a start selects, or turns inside heads, and then has few entries."""
    if columns.device.type == "cpu" and SPARSE * columns.count_nonzero() < columns.numel():
        return columns.to_sparse() @ second
    return columns @ second


def _ridged(second: Tensor, strength: float, right: Tensor) -> Tensor:
    """Return `(second + strength)^-1 right`; directions that are singular up to rounding count as singular."""
    regular = second.clone()
    regular.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if not failed:
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(second)
    return vectors @ ((vectors.T @ right) / (values.clamp(min=0) + strength)[:, None])


def _centred(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean of observations, and themselves about it, times the roots of weights; in float32 or more."""
    rows = full(rows)
    if weights is None:
        mean = rows.mean(0)
        return mean, rows - mean
    weights = weights.to(rows)
    mean = (weights @ rows) / weights.sum()
    return mean, (rows - mean) * weights.sqrt()[:, None]
