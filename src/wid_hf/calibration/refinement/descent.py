"""Adam on a few tensors, stopped by held-out data: never worse there than before.

Takes tensors and a loss, changes the tensors in place. Called by `layer_by_layer` and `head`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...progress_bar import progress_bar
from .pieces import Pieces

CHECKS = 10  # how often the held-out error is measured
SMALLER = 4  # by which the rate is divided where the error grows at once
TRIES = 4
SMALL = 0.01
GROWN = 1.1  # times the start's error: what the first check may find, which comes after few large steps


@dataclass(frozen=True)
class Descent:
    """What became of the held-out error.

    Attributes:
        before: of the start.
        after: of the best tensors seen, which are those that remain.
        steps: how many were taken.
    """

    before: float
    after: float
    steps: int


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: at most.
        rate: learning rate of the first step; it falls linearly to zero.
        pieces: how many each step sees.
        deadline: of `time.monotonic`, at which the rate is zero whatever the step; None for no end.
    """

    steps: int
    rate: float
    pieces: int
    deadline: float | None

    @property
    def every(self) -> int:
        """After how many steps the held-out error is measured."""
        return max(1, self.steps // CHECKS)

    def rates(self, divided: float) -> Iterator[float]:
        """Yield the learning rate of each step, until steps or time are over."""
        began = time.monotonic()
        for step in range(self.steps):
            passed = step / self.steps
            if self.deadline is not None:
                passed = max(passed, (time.monotonic() - began) / max(self.deadline - began, 1e-9))
            if passed >= 1:
                return
            yield self.rate / divided * min(1, (step + 1) / self.every) * (1 - passed)


@dataclass(frozen=True)
class Fit:
    """What is fitted.

    Attributes:
        tensors: leaves that require gradients.
        loss: of the piece of a number, a scalar.
        pieces: what is trained on and what is held out.
        project_: brings the tensors to what is allowed, after every step.
    """

    tensors: Sequence[Tensor]
    loss: Callable[[int], Tensor]
    pieces: Pieces
    project_: Callable[[], None]

    @torch.no_grad()
    def held_out_error(self) -> float:
        """Return the mean loss of the pieces that are held out."""
        return sum(float(self.loss(at)) for at in self.pieces.held_out) / len(self.pieces.held_out)

    @torch.enable_grad()
    def set_gradients(self, chosen: Sequence[int]) -> None:
        """Set the gradients of the mean loss of some pieces, of these tensors alone."""
        for tensor in self.tensors:
            tensor.grad = None
        for at in chosen:
            found = torch.autograd.grad(self.loss(at) / len(chosen), self.tensors, allow_unused=True)
            for tensor, gradient in zip(self.tensors, found, strict=True):
                if gradient is not None:
                    tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient

    def values(self) -> list[Tensor]:
        """Return copies of the tensors."""
        return [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def set(self, values: Sequence[Tensor]) -> None:
        """Set the tensors."""
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)


def descend(fit: Fit, schedule: Schedule, title: str) -> Descent:
    """Make the loss smaller, and leave the tensors at the smallest held-out error seen.

    Where the error is far above its start at the first check, all begins again with a smaller rate.

    Args:
        fit: tensors and loss.
        schedule: steps and rates.
        title: of the progress bar.
    """
    start = fit.values()
    before = best = fit.held_out_error()
    kept, steps = start, 0
    for attempt in range(TRIES):
        grew = False
        for step, error in _attempt(fit, schedule, float(SMALLER**attempt), title):
            steps += 1
            if error is None:
                continue
            if error < best:
                best, kept = error, fit.values()
            elif step < 2 * schedule.every and attempt + 1 < TRIES and not error <= GROWN * before:
                grew = True
                break
        if not grew:
            break
        fit.set(start)
    fit.set(kept)
    return Descent(before, best, steps)


def _attempt(fit: Fit, schedule: Schedule, divided: float, title: str) -> Iterator[tuple[int, float | None]]:
    """Take steps, and yield the number of each with the held-out error where that is measured."""
    groups = [{"params": [tensor], "size": _size(tensor)} for tensor in fit.tensors]
    optimizer = torch.optim.Adam(groups, schedule.rate)
    order = _shuffled(fit.pieces.training)
    last: int | None = None
    for step, rate in progress_bar(enumerate(schedule.rates(divided)), title, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"]
        fit.set_gradients([next(order) for _ in range(schedule.pieces)])
        optimizer.step()
        fit.project_()
        checked = (step + 1) % schedule.every == 0
        last = None if checked else step
        yield step, fit.held_out_error() if checked else None
    if last is not None:  # time was over between two checks
        yield last, fit.held_out_error()


def _size(tensor: Tensor) -> float:
    """Return the root mean square of a tensor's entries, and not less than `SMALL`: a new bias is zero."""
    return max(float(tensor.detach().square().mean().sqrt()), SMALL)


def _shuffled(numbers: Sequence[int]) -> Iterator[int]:
    """Yield the numbers again and again, each time in another order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for place in torch.randperm(len(numbers), generator=generator).tolist():
            yield numbers[place]
