"""Running means and second moments: all that calibration stores of activations.

Takes rows of activations, gives covariances of one tensor and regressions of one tensor on another. Products are
formed batch by batch about the batch's own mean, in the precision of the activations but never less than float32,
and added up in float64 (Chan, Golub and LeVeque 1979, who show that this avoids cancellation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import place_of

TINY = 1e-30


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
        self.about_mean += (rows.T @ rows).to(self.mean)
        count = self.count + len(rows)
        step = mean.to(self.mean) - self.mean
        self.about_mean.addr_(step, step, alpha=self.count * len(rows) / count)
        self.mean += step * (len(rows) / count)
        self.count = count

    def matrix(self, centred: bool) -> Tensor:
        """Return the covariance `(n, n)`, or the second moments about zero."""
        covariance = self.about_mean / max(self.count, 1)
        return covariance if centred else covariance + torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class LinearFit:
    """The affine map `x_teacher = columns @ x_student + offset`: `(n, k)` and `(n,)`."""

    columns: Tensor
    offset: Tensor


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
        cross, second = (product.to(self.cross) for product in (teacher.T @ student, student.T @ student))
        self._join(len(teacher), weight, (mean.to(self.teacher), other.to(self.student)), (cross, second, energy))

    def __iadd__(self, new: Regression) -> Regression:
        self._join(new.count, new.weight, (new.teacher, new.student), (new.cross, new.second, new.energy))
        return self

    def _join(self, count: int, weight: float, means: tuple[Tensor, Tensor], about: tuple[Tensor, ...]) -> None:
        """Add `count` positions by their means, and by their cross and second moments and energy about these."""
        self.count += count
        total = self.weight + weight
        if not total:
            return
        share = weight / total
        teacher, student = means[0] - self.teacher, means[1] - self.student
        cross, second, energy = about
        self.cross.add_(cross).addr_(teacher, student, alpha=self.weight * share)
        self.second.add_(second).addr_(student, student, alpha=self.weight * share)
        self.energy.add_(energy).add_(teacher.square().sum(), alpha=self.weight * share)
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
        cross, second, _ = self._moments(intercept)
        start = start.to(second)
        strength = ridge * second.diagonal().mean()
        columns = start
        if strength > TINY:  # otherwise the activations never vary
            columns = start + _ridged(second, float(strength), (cross - start @ second).T).T
        offset = self.teacher - columns @ self.student if intercept else torch.zeros_like(self.teacher)
        return LinearFit(columns, offset)

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
        left = energy - 2 * (columns * cross).sum() + ((columns @ second) * columns).sum()
        return float((left / energy).clamp(min=0)) if energy > TINY else 0.0

    def _moments(self, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.weight or 1
        cross, second, energy = self.cross / weight, self.second / weight, self.energy / weight
        if not centred:
            cross = cross + torch.outer(self.teacher, self.student)
            second = second + torch.outer(self.student, self.student)
            energy = energy + self.teacher.square().sum()
        return cross, second, energy


def _ridged(second: Tensor, strength: float, right: Tensor) -> Tensor:
    """Return `(second + strength)^-1 right`; directions that are singular up to rounding count as singular."""
    factor, failed = torch.linalg.cholesky_ex(
        second + strength * torch.eye(len(second), dtype=second.dtype, device=second.device)
    )
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
