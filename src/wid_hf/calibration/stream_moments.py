"""Second moments of a stream at one place where it is read.

Takes covariance and mean of positions, gives what the map T and the tied table are fitted to. Called by
`stream_rotation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class StreamMoments:
    """Second moments of a stream after one norm, times the number of positions.

    Attributes:
        basis: `(n, n)`, variation and direction of the mean each with a trace of `count`: what the span is chosen for.
        inner: `(n, n)` about the mean, if a bias after the norm can hold a constant; otherwise about zero.
        mean: `(n,)` if it is not in `inner`.
        count: positions.
    """

    basis: Tensor
    inner: Tensor
    mean: Tensor
    count: int

    @classmethod
    def of(cls, covariance: Tensor, mean: Tensor, centred: bool, count: int) -> StreamMoments:
        """Return the moments of `count` positions with this covariance and mean."""
        covariance, mean = covariance.cpu(), mean.cpu()
        second = torch.outer(mean, mean)
        inner = covariance if centred else covariance + second
        basis = inner / inner.trace().clamp(min=TINY)
        if centred:
            basis = basis + second / second.trace().clamp(min=TINY)
        return cls(count * basis, count * inner, count * mean if centred else torch.zeros_like(mean), count)

    def __add__(self, other: StreamMoments) -> StreamMoments:
        return StreamMoments(
            self.basis + other.basis, self.inner + other.inner, self.mean + other.mean, self.count + other.count
        )
