"""Normalisation: statistics over some dimensions, weight and bias along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..carrier import Carrier
from ..dims import Dim
from ..registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

aten = torch.ops.aten


def _scaled_by(trace: Trace, out: Tensor, dims: Sequence[Dim], *weights: Tensor | None) -> None:
    for weight in weights:
        if weight is not None:
            for dim, own in zip(dims, trace.dims(weight), strict=True):
                trace.unify(dim, own)
    name = trace.weight_name(weights[0]) if weights[0] is not None else None
    if name is not None and len(dims) == 1:
        trace.carry(out, Carrier(name, 0, 0, dims[0].size))


@rule(aten.native_layer_norm.default)
def layer_norm(
    trace: Trace, out: Sequence[Tensor], a: Tensor, shape: Sequence[int], weight: Tensor | None,
    bias: Tensor | None, eps: float,
) -> list[Dims]:  # fmt: skip
    """Mean and deviation over the last dimensions; they are kept with size 1 in the statistics."""
    dims = trace.dims(a)
    _scaled_by(trace, out[0], dims[-len(shape) :], weight, bias)
    statistics = (*dims[: -len(shape)], *(Dim(1) for _ in shape))
    return [dims, statistics, statistics]


@rule(aten._fused_rms_norm.default)
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
