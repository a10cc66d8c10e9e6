"""The span of a turned stream: the directions that the student keeps.

At every place where it is read the student's stream lacks `(I - P) x` of the teacher's x, with P the projection on the
span, and the weights W there make `W (I - P) x` of that. The span makes `sum_s tr(A_s (I - P) M_s (I - P))` small, with
M the moments of x and A what is needed of x, `W^T W`. With A the identity everywhere these are the leading directions
of the sum of all M, as in SliceGPT (Ashkboos and others 2024, section 3). Takes moments and needs, gives a basis. Pure
functions of tensors; called by `turned_map`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS = 30  # of L-BFGS: twice as many gain less than half a percent
TINY = 1e-12  # of what there is to lose: a smaller loss is rounding
FLAT = 1e-5  # gradient of the loss as a share of its start
SMALL = 1e-3  # of what there is to lose: a smaller loss needs float64


@dataclass(frozen=True)
class Place:
    """A place at which a stream is read.

    Attributes:
        moments: M `(n, n)` of the stream there; the larger their trace, the more the place counts.
        needs: A `(n, n)`, positive semidefinite, with a trace of one.
    """

    moments: Tensor
    needs: Tensor

    def within(self, basis: Tensor) -> Place:
        """Return the place in the coordinates of an orthonormal basis `(n, m)`."""
        return Place(basis.T @ self.moments @ basis, basis.T @ self.needs @ basis)


def total_moments(places: Sequence[Place]) -> Tensor:
    """Return the sum of the moments `(n, n)`."""
    return sum_of(place.moments for place in places)


def sum_of(matrices: Iterable[Tensor]) -> Tensor:
    """Return the sum of one matrix or more in float64, held one at a time."""
    following = iter(matrices)
    total = next(following).to(torch.float64, copy=True)
    for matrix in following:
        total += matrix
    return total


def leading_span(places: Sequence[Place], count: int) -> Tensor:
    """Return an orthonormal basis `(n, count)` of the span in which the least is lost.

    L-BFGS from the better of two starts: the leading eigenvectors of the sum of M, and of that of `A M + M A`, which
    are those of the loss where all is diagonal.
    """
    loss = _Loss(places, torch.float64)
    starts = [
        torch.linalg.eigh(each).eigenvectors.flip(1)[:, :count] for each in (total_moments(places), loss.of_no_span)
    ]
    start = min(starts, key=lambda each: float(loss(each)))
    scale = float(loss(start))
    if not 0 < count < len(start) or scale <= TINY * loss.whole:
        return start
    if scale > SMALL * loss.whole:
        loss = _Loss(places, torch.float32)
    free = start.to(loss.dtype).clone(memory_format=torch.contiguous_format).requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=STEPS, tolerance_grad=FLAT, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad()
        share = loss(torch.linalg.qr(free).Q) / scale
        share.backward()
        return share

    optimizer.step(closure)
    return torch.linalg.qr(free.detach().to(start)).Q


class _Loss:
    """The loss of a span, as `tr(A M) - 2 tr(Q^T A M Q) + tr(Q^T A Q Q^T M Q)` of its basis Q, summed over places.

    Args:
        places: where the stream is read.
        dtype: of the products.

    Attributes:
        whole: the loss of a span without any direction.
        of_no_span: minus the derivative of the loss by P there `(n, n)`.
        dtype: as given.
    """

    def __init__(self, places: Sequence[Place], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._places = places
        both = sum_of(place.needs.double() @ place.moments.double() for place in places)
        self.whole = float(both.trace())
        self.of_no_span = (both + both.T).to(dtype)

    def __call__(self, basis: Tensor) -> Tensor:
        """Return the loss for a basis `(n, count)`."""
        return _LossOfBasis.apply(basis, self)

    def with_gradient(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and its gradient `(n, count)`, from one product with each matrix."""
        lost = self.of_no_span @ basis
        loss = self.whole - (basis * lost).sum()
        gradient = lost.mul_(-2)
        for place in self._places:
            varied, read = place.moments.to(self.dtype) @ basis, place.needs.to(self.dtype) @ basis
            moments, needs = basis.T @ varied, basis.T @ read
            loss += (needs * moments).sum()
            gradient += 2 * (read @ moments + varied @ needs)
        return loss, gradient


class _LossOfBasis(torch.autograd.Function):
    """The loss of a basis, whose gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, basis: Tensor, loss: _Loss) -> Tensor:
        found, gradient = loss.with_gradient(basis)
        ctx.save_for_backward(gradient)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (own,) = ctx.saved_tensors
        return gradient * own, None
