"""Normalisation: statistics over some dimensions, weight and bias along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..carrier import Carrier
from ..dims import Dim, split_product
from ..op_registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace


def _scaled_by(trace: Trace, out: Tensor, dims: Sequence[Dim], *weights: Tensor | None) -> None:
    for dim in dims:
        trace.note_reduction(dim)
    for weight in weights:
        if weight is not None:
            trace.unify_each(dims, trace.dims(weight))
    name = trace.weight_name(weights[0]) if weights[0] is not None else None
    if name is not None and len(dims) == 1:
        trace.carry(out, Carrier(name, 0, 0, dims[0].size))


def _along(trace: Trace, channels: Dim, *vectors: Tensor | None) -> None:
    """Demand that each vector that is given lies along `channels`."""
    for vector in vectors:
        if vector is not None:
            trace.unify(trace.dims(vector)[0], channels)


@rule("aten.native_layer_norm.default")
def layer_norm(
    trace: Trace,
    out: Sequence[Tensor],
    a: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> list[Dims]:
    """Mean and deviation over the last dimensions; they are kept with size 1 in the statistics."""
    dims = trace.dims(a)
    _scaled_by(trace, out[0], dims[-len(shape) :], weight, bias)
    statistics = (*dims[: -len(shape)], *(Dim(1) for _ in shape))
    return [dims, statistics, statistics]


@rule("aten._fused_rms_norm.default")
def fused_rms_norm(
    trace: Trace,
    out: Sequence[Tensor],
    a: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
) -> list[Dims]:
    """Mean square over the last dimensions."""
    dims = trace.dims(a)
    _scaled_by(trace, out[0], dims[-len(shape) :], weight)
    return [dims, (*dims[: -len(shape)], *(Dim(1) for _ in shape))]


@rule("aten.native_group_norm.default")
def group_norm(
    trace: Trace,
    out: Sequence[Tensor],
    a: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    space: int,
    groups: int,
    eps: float,
) -> list[Dims]:
    """`(b, groups x rest, space)`: statistics over rest and space."""
    dims = trace.dims(a)
    group, rest = split_product(dims[1], [groups, channels // groups], trace.reason("does not divide into groups"))
    trace.note_reduction(rest)
    _along(trace, dims[1], weight, bias)
    return [dims, (dims[0], group), (dims[0], group)]


@rule(
    "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit_no_training.default",
    "aten.cudnn_batch_norm.default",
)
def batch_norm(
    trace: Trace,
    out: Sequence[Tensor],
    a: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    *args: Any,
) -> list[Dims]:
    """`(b, channels, space)`: weight, bias and running statistics lie along the channels."""
    dims = trace.dims(a)
    _along(trace, dims[1], weight, bias, mean, variance)
    saved = [(dims[1],) if extra.numel() else (Dim(0),) for extra in out[1:]]
    return [dims, *saved]


@rule("aten._weight_norm_interface.default")
def weight_norm(trace: Trace, out: Sequence[Tensor], direction: Tensor, length: Tensor, place: int = 0) -> list[Dims]:
    """`length * direction / |direction|`, the norm taken over all axes but one."""
    for dim, again in zip(trace.dims(direction), trace.dims(length), strict=True):
        if again.size == dim.size:
            trace.unify(dim, again)
    return [trace.dims(direction), trace.dims(length)]
