"""Convolutions: channels are contracted like a matrix product, space is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

aten = torch.ops.aten


@rule(aten.convolution.default)
def convolution(
    trace: Trace, out: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Dims | None:  # fmt: skip
    """`(b, in, space) * (out, in, kernel) -> (b, out, space)`; depthwise: in and out are one dimension."""
    if transposed:
        return None
    batch, channels, *walked = trace.dims(a)
    out_channels, in_channels, *kernel = trace.dims(weight)
    if groups == 1:
        trace.unify(channels, in_channels)
    elif groups == a.shape[1] == out.shape[1]:
        trace.unify(channels, out_channels)
    else:
        return None
    for dim in kernel:
        trace.freeze(dim, "is a position inside a convolution kernel")
    for dim in walked:
        trace.freeze(dim, "is a position in space")
    if bias is not None:
        trace.unify(trace.dims(bias)[0], out_channels)
    space = tuple(trace.frozen(size, "is a position in space") for size in out.shape[2:])
    return (batch, out_channels, *space)
