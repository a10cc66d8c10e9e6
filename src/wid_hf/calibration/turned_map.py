"""The map of a turned stream: which combinations of its indices the student keeps.

Takes the places at which a stream is read, gives `T (k, n)` with orthonormal rows, so that `T x` keeps the directions
that are needed most (`stream_span`). Where norms subtract the mean over indices, rows and images of T have a mean of
zero instead (`T 1 = 0`, `1^T T = 0`, `T T^T = I - 1 1^T / k`): then centring commutes with T, and the variance that
LayerNorm divides by keeps its meaning. Pure functions of tensors; called by `stream_rotation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .column_subset import column_subset
from .stream_span import Place, leading_span, total_moments

OUTLYING = 2.0  # relative deviation from the median weight of those that are called outliers; less does no harm
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


def principal_map(places: Sequence[Place], count: int) -> TurnedMap:
    """Return an orthonormal basis of the leading span as rows."""
    vectors = leading_span(places, count)
    return TurnedMap(vectors.T.contiguous(), column_subset(total_moments(places).cpu(), count))


def centred_map(places: Sequence[Place], count: int, outliers: Sequence[int] = ()) -> TurnedMap:
    """Return the map of a stream that norms centre, as near to a selection of indices as its span allows.

    The span has `count - 1` directions, all centred: the centred unit vectors of `outliers`, and the leading span of
    the rest. Within it T is the polar factor of `S Q Q^T`: S selects pivots, and Q is a basis of the span. So the
    weights of norms, which are diagonal, remain nearly diagonal.

    Args:
        places: where the stream is read.
        count: k.
        outliers: indices that the student keeps as they are.
    """
    moments = total_moments(places)
    inner, kept_count = _centred_basis(moments, len(moments)), len(outliers)
    kept, rest = torch.linalg.qr(inner[list(outliers)].T, mode="complete").Q.tensor_split([kept_count], 1)
    free = inner @ rest
    span = leading_span([place.within(free) for place in places], count - 1 - kept_count)
    basis = torch.cat([inner @ kept, free @ span], 1)
    pivots = _pivots(inner @ inner.T @ moments @ inner @ inner.T, count, outliers)
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
