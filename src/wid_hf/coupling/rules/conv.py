"""Convolutions: channels are contracted like a matrix product, space is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dims import product, split_product
from ..registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

aten = torch.ops.aten


@rule(aten.convolution.default)
def convolution(
    trace: Trace, out: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Dims | None:  # fmt: skip
    """`(b, in, space) * (out, in, kernel) -> (b, out, space)`; grouped: both are groups x rest."""
    if transposed:
        return None
    batch, channels, *walked = trace.dims(a)
    out_channels, in_channels, *kernel = trace.dims(weight)
    if groups == 1:
        trace.unify(channels, in_channels)
    elif groups == a.shape[1] == out.shape[1]:
        trace.unify(channels, out_channels)
    else:
        why = trace.reason("does not divide into the groups of a convolution")
        group, inner = split_product(channels, [groups, a.shape[1] // groups], why)
        group_again, _ = split_product(out_channels, [groups, out.shape[1] // groups], why)
        trace.unify(inner, in_channels)
        trace.unify(group, group_again)
    for dim in kernel:
        trace.freeze(dim, "is a position inside a convolution kernel")
    for dim in walked:
        trace.freeze(dim, "is a position in space")
    if bias is not None:
        trace.unify(trace.dims(bias)[0], out_channels)
    space = tuple(trace.frozen(size, "is a position in space") for size in out.shape[2:])
    return (batch, out_channels, *space)


@rule(aten.im2col.default)
def patches(trace: Trace, out: Tensor, a: Tensor, *args: Sequence[int]) -> Dims:
    """`(b, channels, space) -> (b, channels x kernel, positions)`."""
    batch, channels, *walked = trace.dims(a)
    for dim in walked:
        trace.freeze(dim, "is a position in space")
    kernel = trace.frozen(out.shape[1] // a.shape[1], "is a position inside a kernel")
    return batch, product([channels, kernel]), trace.frozen(out.shape[2], "is a position in space")


@rule(
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default,
    aten.upsample_nearest1d.default, aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default, aten.upsample_linear1d.default,
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.replication_pad2d.default,
)  # fmt: skip
def resampled(trace: Trace, out: Tensor, a: Tensor, *args: object, **kwargs: object) -> Dims:
    """`(b, channels, space) -> (b, channels, other space)`."""
    kept = [dim for dim, size in zip(trace.dims(a)[:2], out.shape[:2], strict=True) if dim.size == size]
    for dim in trace.dims(a)[len(kept) :]:
        trace.freeze(dim, "is a position in space")
    return (*kept, *(trace.frozen(size, "is a position in space") for size in out.shape[len(kept) :]))


@rule(aten.max_pool2d_with_indices.default)
def largest_in_window(trace: Trace, out: Sequence[Tensor], a: Tensor, *args: object, **kwargs: object) -> list[Dims]:
    """As `resampled`, and where each largest element stood."""
    dims = resampled(trace, out[0], a)
    return [dims, dims]
