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
    inner, kept_count = _centred_basis(moments, len(moments)), len(outliers)
    own = inner.T @ moments @ inner
    kept, rest = torch.linalg.qr(inner[list(outliers)].T, mode="complete").Q.tensor_split([kept_count], 1)
    directions = torch.linalg.eigh(rest.T @ own @ rest).eigenvectors.flip(1)[:, : count - 1 - kept_count]
    basis = inner @ torch.cat([kept, rest @ directions], 1)
    pivots = _pivots(inner @ own @ inner.T, count, outliers)
    images = _centred_basis(moments, count)
    left, _, right = torch.linalg.svd(images.T @ basis[pivots.to(basis.device)])
    return TurnedMap(images @ left @ right @ basis.T, pivots)


def _centred_basis(like: Tensor, size: int) -> Tensor:
    """Return an orthonormal basis `(size, size - 1)` of the vectors with a mean of zero.

    These are columns of the reflection that exchanges the first unit vector and that of ones.
    """
    normal = like.new_full((size,), -(size**-0.5))
    normal[0] += 1
    reflection = torch.eye(size).to(like) - 2 / normal.square().sum() * torch.outer(normal, normal)
    return reflection[:, 1:]


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
