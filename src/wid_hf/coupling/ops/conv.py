"""Convolutions: channels are contracted like a matrix product, space is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..dims import Dim, product, split_product
from ..op_registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

SPACE = "is a position in space"


@rule("aten.convolution.default")
def convolution(
    trace: Trace,
    out: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Dims | None:
    """`(b, in, space) * (out, in, kernel) -> (b, out, space)`; grouped: both are groups x rest.

    The kernel of a transposed convolution is `(in, out, kernel)`.
    """
    batch, channels, *spatial = trace.dims(a)
    out_channels, in_channels, *kernel = trace.dims(weight)
    if transposed:
        out_channels = _transposed_channels(trace, channels, out_channels, in_channels, groups)
    elif groups == 1:
        trace.unify(channels, in_channels)
    else:
        _unify_grouped(trace, channels, out_channels, in_channels, groups)
    trace.freeze_each(kernel, "is a position inside a convolution kernel")
    if bias is not None:
        trace.unify(trace.dims(bias)[0], out_channels)
    return (batch, out_channels, *_space(trace, out, spatial, weight.shape[2:], stride, padding))


def _unify_grouped(trace: Trace, channels: Dim, rows: Dim, columns: Dim, groups: int) -> None:
    """Unify what a grouped kernel `(out, in / groups, kernel)` couples; with as many groups as channels, all of it."""
    if groups == channels.size == rows.size:
        trace.unify(channels, rows)
        return
    why = trace.reason("does not divide into the groups of a convolution")
    group, inner = split_product(channels, [groups, channels.size // groups], why)
    group_again, _ = split_product(rows, [groups, rows.size // groups], why)
    trace.unify(inner, columns)
    trace.unify(group, group_again)


def _transposed_channels(trace: Trace, channels: Dim, rows: Dim, columns: Dim, groups: int) -> Dim:
    """Return the channels that a transposed kernel `(in, out / groups, kernel)` writes."""
    trace.unify(channels, rows)
    if groups == 1:
        return columns
    why = trace.reason("does not divide into the groups of a convolution")
    return product([split_product(rows, [groups, rows.size // groups], why)[0], columns])


def _space(
    trace: Trace,
    out: Tensor,
    spatial: Sequence[Dim],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[Dim]:
    """Return the spatial dimensions of `out`: a window of size and step 1 leaves one free, any other freezes it."""
    n = len(spatial)
    kernel, stride, padding = (list(given) * n if len(given) == 1 else given for given in (kernel, stride, padding))
    result = []
    for dim, size, *window in zip(spatial, out.shape[-n:], kernel, stride, padding, strict=True):
        if window == [1, 1, 0]:
            result.append(dim)
        else:
            trace.freeze(dim, SPACE)
            result.append(trace.frozen(size, SPACE))
    return result


@rule("aten.avg_pool2d.default", "aten.avg_pool3d.default")
def average_pooling(
    trace: Trace,
    out: Tensor,
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    *args: object,
    **kwargs: object,
) -> Dims:
    """`(b, channels, space) -> (b, channels, coarser space)`; `b` may be missing."""
    dims = trace.dims(a)
    n = int(trace.reason("").operation.partition("pool")[2][0])
    return (*dims[:-n], *_space(trace, out, dims[-n:], kernel, stride or kernel, padding))


@rule("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def maximum_pooling(
    trace: Trace,
    out: Sequence[Tensor],
    a: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    *args: object,
    **kwargs: object,
) -> list[Dims]:
    """Like average pooling, and the position of each largest element."""
    dims = average_pooling(trace, out[0], a, kernel, stride, padding)
    return [dims, dims]


@rule("aten.im2col.default")
def patches(trace: Trace, out: Tensor, a: Tensor, *args: Sequence[int]) -> Dims:
    """`(b, channels, space) -> (b, channels x kernel, positions)`."""
    batch, channels, *spatial = trace.dims(a)
    trace.freeze_each(spatial, SPACE)
    kernel = trace.frozen(out.shape[1] // a.shape[1], "is a position inside a kernel")
    return batch, product([channels, kernel]), trace.frozen(out.shape[2], SPACE)


@rule("aten.col2im.default")
def from_patches(trace: Trace, out: Tensor, a: Tensor, *args: Sequence[int]) -> Dims:
    """`(b, channels x kernel, positions) -> (b, channels, space)`: overlapping patches are summed."""
    *batch, rows, positions = trace.dims(a)
    channels = out.shape[-3]
    why = trace.reason("does not divide into channels and the positions of a kernel")
    own, kernel = split_product(rows, [channels, rows.size // channels], why)
    trace.freeze(kernel, "is a position inside a kernel")
    trace.freeze(positions, SPACE)
    return (*batch, own, *trace.frozen_each(out.shape[-2:], SPACE))


@rule("aten.pixel_shuffle.default")
def into_space(trace: Trace, out: Tensor, a: Tensor, factor: int) -> Dims:
    """`(b, channels x factor x factor, h, w) -> (b, channels, h * factor, w * factor)`."""
    *batch, rows, height, width = trace.dims(a)
    why = trace.reason("does not divide into channels and positions")
    channels, y, x = split_product(rows, [out.shape[-3], factor, factor], why)
    trace.freeze_each((y, x), SPACE)
    return (*batch, channels, product([height, y]), product([width, x]))


@rule("aten.pixel_unshuffle.default")
def out_of_space(trace: Trace, out: Tensor, a: Tensor, factor: int) -> Dims:
    """`(b, channels, h * factor, w * factor) -> (b, channels x factor x factor, h, w)`."""
    *batch, channels, height, width = trace.dims(a)
    why = trace.reason("does not divide into blocks")
    (h, y), (w, x) = (split_product(dim, [dim.size // factor, factor], why) for dim in (height, width))
    trace.freeze_each((y, x), SPACE)
    return (*batch, product([channels, y, x]), h, w)


@rule("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def sampled(trace: Trace, out: Tensor, a: Tensor, grid: Tensor, *args: object) -> Dims:
    """`(b, channels, space)` read between its points where `grid (b, space, 2)` says."""
    batch, channels, *spatial = trace.dims(a)
    batch_again, *space, coordinates = trace.dims(grid)
    trace.unify(batch, batch_again)
    trace.freeze_each((*spatial, coordinates), SPACE)
    return (batch, channels, *space)


@rule(
    "aten._adaptive_avg_pool2d.default",
    "aten._adaptive_avg_pool3d.default",
    "aten._upsample_bilinear2d_aa.default",
    "aten._upsample_bicubic2d_aa.default",
    "aten.upsample_nearest1d.default",
    "aten.upsample_nearest2d.default",
    "aten.upsample_bilinear2d.default",
    "aten.upsample_bicubic2d.default",
    "aten.upsample_linear1d.default",
    "aten.reflection_pad1d.default",
    "aten.reflection_pad2d.default",
    "aten.replication_pad2d.default",
)
def resampled(trace: Trace, out: Tensor, a: Tensor, *args: object, **kwargs: object) -> Dims:
    """`(b, channels, space) -> (b, channels, other space)`."""
    kept = [dim for dim, size in zip(trace.dims(a)[:2], out.shape[:2], strict=True) if dim.size == size]
    trace.freeze_each(trace.dims(a)[len(kept) :], SPACE)
    return (*kept, *trace.frozen_each(out.shape[len(kept) :], SPACE))
