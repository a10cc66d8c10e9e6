"""Running second moments in float64: all that calibration keeps of activations.

Takes rows of activations, gives covariances of one tensor and regressions of one tensor on another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30


def place_of(device: torch.device) -> torch.device:
    """Return where float64 statistics of tensors on `device` live: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class Covariance:
    """First and second moments of `n` indices."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.sum = torch.zeros(size, dtype=torch.float64, device=place_of(device))
        self.second = torch.zeros(size, size, dtype=torch.float64, device=place_of(device))

    def add(self, rows: Tensor) -> None:
        """Add observations `(rows, n)`."""
        rows = rows.to(self.sum.device, torch.float64)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.second.addmm_(rows.T, rows)

    def matrix(self, centred: bool) -> Tensor:
        """Return the covariance `(n, n)`, or the second moments about zero."""
        mean = self.sum / max(self.count, 1)
        second = self.second / max(self.count, 1)
        return second - torch.outer(mean, mean) if centred else second


@dataclass(frozen=True)
class Lift:
    """The affine map `x_teacher = columns @ x_student + offset`: `(n, k)` and `(n,)`."""

    columns: Tensor
    offset: Tensor


class Regression:
    """Joint second moments of `n` teacher indices and `k` student indices, observed at the same positions."""

    def __init__(self, teacher: int, student: int, device: torch.device) -> None:
        place = place_of(device)
        self.count = 0
        self.sums = [torch.zeros(size, dtype=torch.float64, device=place) for size in (teacher, student)]
        self.square = torch.zeros(teacher, dtype=torch.float64, device=place)
        self.cross = torch.zeros(teacher, student, dtype=torch.float64, device=place)
        self.second = torch.zeros(student, student, dtype=torch.float64, device=place)

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Add observations `(rows, n)` and `(rows, k)` of the same positions."""
        place = self.square.device
        teacher, student = teacher.to(place, torch.float64), student.to(place, torch.float64)
        self.count += len(teacher)
        self.sums[0] += teacher.sum(0)
        self.sums[1] += student.sum(0)
        self.square += teacher.square().sum(0)
        self.cross.addmm_(teacher.T, student)
        self.second.addmm_(student.T, student)

    def __iadd__(self, other: Regression) -> Regression:
        self.count += other.count
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.add_(theirs)
        return self

    def is_finite(self) -> tuple[bool, bool]:
        """Return whether all that was observed of the teacher, and of the student, is finite."""
        return bool(self.square.isfinite().all()), bool(self.second.isfinite().all())

    def solve(self, start: Tensor, ridge: float, intercept: bool) -> Lift:
        """Return `argmin E|x_teacher - C x_student - c0|^2 + r |C - start|^2`, Tikhonov's ridge regression.

        `r` is `ridge` times the mean variance of the student's indices, so where the student's stream says
        nothing (constant features, directions never seen) the lift stays what it was.

        Args:
            start: `(n, k)`, towards which the solution shrinks.
            ridge: strength, a share of the mean variance.
            intercept: whether there is a `c0`; otherwise it is zero.
        """
        cross, second, _ = self._moments(intercept)
        start = start.to(second)
        size = len(second)
        strength = ridge * second.diagonal().mean()
        if not strength > 0:  # a stream that never moves
            return Lift(start, self._offset(start, intercept))
        factor = torch.linalg.cholesky(second + strength * torch.eye(size).to(second))
        change = torch.cholesky_solve((cross - start @ second).T, factor).T
        return Lift(start + change, self._offset(start + change, intercept))

    def error(self, columns: Tensor, intercept: bool) -> float:
        """Return `E|x_teacher - C x_student - c0|^2 / E|x_teacher|^2` with the best `c0`, or none.

        With an intercept both are taken about the mean. 0 where the teacher's stream never moves.
        """
        cross, second, energy = self._moments(intercept)
        columns = columns.to(second)
        left = energy - 2 * (columns * cross).sum() + ((columns @ second) * columns).sum()
        return float((left / energy).clamp(min=0)) if energy > TINY else 0.0

    def _moments(self, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        count = max(self.count, 1)
        cross, second, energy = self.cross / count, self.second / count, self.square.sum() / count
        if centred:
            teacher, student = (total / count for total in self.sums)
            cross, second = cross - torch.outer(teacher, student), second - torch.outer(student, student)
            energy = energy - teacher.square().sum()
        return cross, second, energy

    def _offset(self, columns: Tensor, intercept: bool) -> Tensor:
        if not intercept:
            return torch.zeros_like(self.square)
        teacher, student = (total / max(self.count, 1) for total in self.sums)
        return teacher - columns @ student

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.sums, self.square, self.cross, self.second)
