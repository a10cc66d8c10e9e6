"""The map of a turned stream: which combinations of its indices the student keeps.

Takes second moments of a stream, gives `T (k, n)` with orthonormal rows, so that `T x` keeps the leading directions
(SliceGPT, Ashkboos and others 2024, section 3). Where norms subtract the mean over indices, rows and images of T have a
mean of zero instead (`T 1 = 0`, `1^T T = 0`, `T T^T = I - 1 1^T / k`): then centring commutes with T, and the variance
that LayerNorm divides by keeps its meaning. Pure functions of tensors; called by `stream_rotation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .column_subset import column_subset

OUTLYING = 0.5  # relative deviation from the median weight beyond which an index is called an outlier
SHARE = 8  # at most one index of the student in so many is an outlier


@dataclass(frozen=True)
class TurnedMap:
    """A map from a stream to the student's.

    Attributes:
        matrix: T `(k, n)`, float64.
        nearest: for each index of the student the teacher's index that it is nearest to, `(k,)`, ascending; no index
            twice.
    """

    matrix: Tensor
    nearest: Tensor


def principal_map(moments: Tensor, count: int) -> TurnedMap:
    """Return the leading `count` eigenvectors of moments `(n, n)` as rows."""
    vectors = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :count]
    return TurnedMap(vectors.T.contiguous(), column_subset(moments.cpu(), count))


def centred_map(moments: Tensor, count: int, outliers: Sequence[int] = ()) -> TurnedMap:
    """Return the map of a stream that norms centre, as near to a selection of indices as its span allows.

    The span is that of the leading `count - 1` directions of the centred moments, and of the centred unit vectors of
    `outliers`. Within it T is the polar factor of `S Q Q^T`: S selects pivots, and Q is a basis of the span. So the
    weights of norms, which are diagonal, remain nearly diagonal.

    Args:
        moments: of the stream `(n, n)`.
        count: k.
        outliers: indices that the student keeps as they are.
    """
    n = len(moments)
    centre = torch.eye(n, dtype=moments.dtype, device=moments.device) - 1 / n
    centred = centre @ moments @ centre
    kept = torch.linalg.qr(centre[:, list(outliers)]).Q
    rest = centred - kept @ (kept.T @ centred)
    rest = rest - (rest @ kept) @ kept.T
    directions = torch.linalg.eigh(rest).eigenvectors[:, n - (count - 1 - len(outliers)) :]
    basis = torch.cat([kept, directions], 1)
    pivots = _pivots(centred, count, outliers)
    near = basis[pivots.to(basis.device)] @ basis.T
    near = near - near.mean(1, keepdim=True)
    near = near - near.mean(0, keepdim=True)
    values, vectors = torch.linalg.eigh(near @ near.T)
    leading = vectors[:, 1:]  # the first is the vector of ones: images have a mean of zero
    scale = values[1:].clamp(min=1e-12 * float(values[-1])).sqrt()
    return TurnedMap(leading / scale @ leading.T @ near, pivots)


def outlying(weights: Sequence[Tensor], count: int) -> list[int]:
    """Return the indices at which norms' weights `(n,)` deviate most from their median, at most `count / 8` of them.

    The rotation of a diagonal that is nearly a multiple of the identity is nearly diagonal; few outlying entries are
    not.
    """
    if not weights:
        return []
    deviations = torch.stack([(weight / weight.median() - 1).abs() for weight in weights]).amax(0)
    order = deviations.argsort(descending=True)[: count // SHARE]
    return sorted(int(index) for index in order if deviations[index] > OUTLYING)


def _pivots(covariance: Tensor, count: int, first: Sequence[int]) -> Tensor:
    """Return a column subset of `count` indices that has `first` in it."""
    covariance = covariance.cpu()
    if not first:
        return column_subset(covariance, count)
    inside = torch.tensor(list(first))
    across = covariance[inside]
    own = across[:, inside]
    own = own + 1e-9 * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
    left = covariance - across.T @ torch.linalg.solve(own, across)
    left[inside] = 0
    left[:, inside] = 0
    others = column_subset(left, count - len(inside))
    spare = [index for index in range(len(covariance)) if index not in set(first) | set(others.tolist())]
    chosen = sorted(set(first) | set(others.tolist()))
    return torch.tensor(sorted(chosen + spare[: count - len(chosen)]))
