"""Which operations contract a tensor with a weight, and which leave a dimension free to be rotated.

Facts about operations only: `trace` notes the inputs of weights by them, `calibration` stops there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from .carrier import Carrier

aten = torch.ops.aten

# The result holds all of the operand; only the order of axes, or the number of axes of size 1, may differ.
WHOLE = frozenset(
    {
        aten.t,
        aten.transpose,
        aten.permute,
        aten.unsqueeze,
        aten.squeeze,
        aten.slice,
        aten.detach,
        aten.alias,
        aten.clone,
        aten._to_copy,
        aten.contiguous,
    }
)

# If a dimension meets nothing else, it may be multiplied by any invertible matrix that the next contraction undoes.
_LINEAR = WHOLE | {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten._reshape_alias,
    aten.expand,
    aten.split,
    aten.split_with_sizes,
    aten.select,
    aten.unbind,
    aten.cat,
    aten.stack,
    aten.embedding,
    aten.add,
    aten.sub,
    aten.neg,
    aten.dropout,
    aten.lift_fresh,
}
_GROUPED = getattr(aten, "_grouped_mm", None)  # torch 2.8
_SCALING = frozenset({aten.mul, aten.mul_, aten.div, aten.div_})


@dataclass(frozen=True)
class WeightInput:
    """One product in which a tensor and a weight are contracted.

    Attributes:
        weight: the weight's name.
        axis: which of its axes is contracted.
        bias: the vector that the same operation adds, if any.
        carrier: the rows of another weight that compute the input (positions may be mixed), if known.
        routed: whether the data decide the order of positions (experts), so that positions of two models cannot be
            compared one by one.
    """

    weight: str
    axis: int
    bias: str | None
    carrier: Carrier | None
    routed: bool = False


@dataclass(frozen=True)
class Contraction:
    """Two operands of a product, each with the axis that is summed over, and the vector added, if any."""

    operands: tuple[tuple[Tensor, int], tuple[Tensor, int]]
    bias: Tensor | None = None
    routed: bool = False


def contraction(operation: OpOverload, args: Sequence[Any]) -> Contraction | None:
    """Return what `operation` contracts, or None where it is no product of two tensors along one axis."""
    packet = operation.overloadpacket
    if packet is aten.mm:
        return Contraction(((args[0], 1), (args[1], 0)))
    if packet is aten.addmm:
        return Contraction(((args[1], 1), (args[2], 0)), args[0])
    if packet is aten.bmm:
        return Contraction(((args[0], 2), (args[1], 1)))
    if packet is aten.baddbmm:
        return Contraction(((args[1], 2), (args[2], 1)))
    if packet is _GROUPED and (args[0].ndim, args[1].ndim) == (2, 3):
        return Contraction(((args[0], 1), (args[1], 1)), routed=True)
    if packet is aten.convolution and not args[6] and args[8] == 1:  # neither transposed nor grouped
        # At a border padded with zeros the input has no mean to compensate, so the bias is left alone.
        return Contraction(((args[0], 1), (args[1], 1)), None if any(args[4]) else args[2])
    return None


def is_linear(operation: OpOverload, args: Sequence[Any]) -> bool:
    """Return whether `operation` commutes with an invertible map of any dimension that it does not contract."""
    if operation.overloadpacket in _SCALING:
        return any(not isinstance(arg, Tensor) or arg.numel() == 1 for arg in args[:2])
    if operation.overloadpacket is aten.convolution:
        return args[8] == 1  # with groups each channel, or each few, has a separate kernel
    return operation.overloadpacket in _LINEAR


def number_of(value: Any) -> float | None:
    """Return `value` as a number: Python scalars arrive as they are or wrapped in a 0-dimensional tensor."""
    if isinstance(value, Tensor):
        is_number = value.ndim == 0 and value.device.type != "meta" and not value.is_complex()
        return float(value) if is_number else None
    return float(value) if isinstance(value, (int, float)) else None
