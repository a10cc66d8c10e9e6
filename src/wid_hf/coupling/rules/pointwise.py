"""Operations on each element: dimensions are unified after broadcasting from the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..carrier import Carrier
from ..dims import Dim
from ..registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

aten = torch.ops.aten


def broadcast(trace: Trace, out: Tensor, *tensors: Tensor) -> Dims:
    """Return the dimensions of `out`, unifying those of `tensors` that were not broadcast."""
    result: list[Dim] = [Dim(size) for size in out.shape]
    for tensor in tensors:
        for place, dim in enumerate(trace.dims(tensor), start=out.ndim - tensor.ndim):
            if dim.size == out.shape[place] and dim.size != 1:
                trace.unify(dim, result[place])
    return tuple(result)


@rule(
    aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.rsub.Tensor, aten.sub_.Tensor,
    aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar,
    aten.exp.default, aten.log.default, aten.log1p.default, aten.sqrt.default, aten.rsqrt.default,
    aten.reciprocal.default, aten.abs.default, aten.sign.default, aten.sin.default, aten.cos.default,
    aten.tanh.default, aten.sigmoid.default, aten.erf.default, aten.softplus.default,
    aten.relu.default, aten.relu_.default, aten.gelu.default, aten.silu.default, aten.silu_.default,
    aten.hardtanh.default, aten.leaky_relu.default, aten.elu.default, aten.hardswish.default, aten.mish.default,
    aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default,
    aten.maximum.default, aten.minimum.default, aten.floor.default, aten.ceil.default, aten.round.default,
    aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar, aten.lt.Tensor, aten.lt.Scalar,
    aten.le.Tensor, aten.le.Scalar, aten.gt.Tensor, aten.gt.Scalar, aten.ge.Tensor, aten.ge.Scalar,
    aten.logical_not.default, aten.logical_and.default, aten.logical_or.default, aten.bitwise_not.default,
    aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.isnan.default, aten.isinf.default,
    aten.isneginf.default, aten.isfinite.default, aten.nan_to_num.default,
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor,
    aten.floor_divide.default, aten.remainder.Scalar, aten.remainder.Tensor, aten.div.Tensor_mode,
    aten.addcmul.default, aten.hardsigmoid.default, aten.logaddexp.default, aten.square.default, aten.exp_.default,
    aten.clamp_.default, aten.clamp_min_.default, aten.mul_.Scalar, aten.div_.Scalar, aten.pow_.Scalar,
    aten.tanh_.default, aten.sigmoid_.default, aten.gelu_.default, 
    aten.expm1.default, aten.exp2.default, aten.atan2.default, aten.log2.default,
    aten.lerp.Tensor, aten.lerp.Scalar, aten.logit.default, aten.logical_not_.default, aten.bitwise_xor.Tensor,
    aten.__and__.Tensor, aten.__or__.Tensor, aten.polar.default, aten.complex.default, aten._conj.default,
    aten.angle.default, 
    aten.celu.default, aten.hardtanh_.default, aten.leaky_relu_.default, aten.elu_.default,
    aten.hardswish_.default, aten.hardsigmoid_.default, aten.mish_.default, aten.add_.Scalar, aten.sub_.Scalar,
    aten.rsqrt_.default, aten.sqrt_.default, aten.neg_.default, aten.abs_.default, aten.round.decimals,
    aten.trunc.default, aten.frac.default, aten.sinh.default, aten.cosh.default, aten.asinh.default, aten.sinc.default,
    aten.erfc.default, aten.fmod.Scalar, aten.fmod.Tensor, aten.addcdiv.default, aten.xlogy.Tensor, aten.log10.default,
    aten.threshold.default, aten._prelu_kernel.default, aten.clamp_max_.default,
    aten.logical_xor.default, aten.bitwise_and.Scalar, aten.bitwise_or.Scalar, aten.floor_divide.Scalar,
)  # fmt: skip
def elementwise(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """`f(x, y, ...)` on each element."""
    return broadcast(trace, out, *(arg for arg in args if isinstance(arg, Tensor)))


@rule(aten.log_sigmoid_forward.default)
def log_sigmoid(trace: Trace, out: Sequence[Tensor], a: Tensor) -> list[Dims]:
    """The result, and what a backward needs on some devices (empty on others)."""
    return [trace.dims(a), trace.dims(a) if out[1].shape == a.shape else tuple(Dim(size) for size in out[1].shape)]


@rule(aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar)
def addition(trace: Trace, out: Tensor, a: Tensor, b: Any, **kwargs: Any) -> Dims:
    """`a + b`; sums of table look-ups are remembered, since their tables lie in one space."""
    if not isinstance(b, Tensor):
        return trace.dims(a)
    tables = trace.lookups(a) | trace.lookups(b)
    if trace.lookups(a) and trace.lookups(b):
        trace.tables[:] = [group for group in trace.tables if not group & tables]
        trace.tables.append(tables)
        trace.looked_up(out, tables)
    left, right = trace.carrier(a), trace.carrier(b)
    if left == right:  # x * cos + rotated(x) * sin
        trace.carry(out, left)
    return broadcast(trace, out, a, b)


@rule(aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor, aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor)
def scaling(trace: Trace, out: Tensor, a: Any, b: Any) -> Dims:
    """`a * b` or `a / b`; products with a number are recorded, since a student's number may differ."""
    divides = "div" in trace.reason("").operation
    number = _number(b)
    if isinstance(a, Tensor) and number is not None:
        trace.scaled(1.0 / number if divides and number else number, a)
        trace.carry(out, trace.carrier(a))
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if trace.weight_name(a) is None and trace.weight_name(b) is None:
            # Only a product with a constant surely scales along: `x * f(x)` may not scale as x does.
            if not trace.depends_on_weights(b):
                trace.carry(out, trace.carrier(a))
            elif not divides and not trace.depends_on_weights(a):
                trace.carry(out, trace.carrier(b))
        elif not divides:
            _carry_norm_weight(trace, out, a, b)
    return broadcast(trace, out, *(tensor for tensor in (a, b) if isinstance(tensor, Tensor)))


@rule(
    aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default, aten._to_copy.default,
    aten.contiguous.default, aten.neg.default, aten.positive.default, aten.dropout.default,
)  # fmt: skip
def same_dims(trace: Trace, out: Tensor, a: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """A copy, or a linear operation on each element."""
    trace.carry(out, trace.carrier(a))
    trace.mark_view(out, a)
    trace.looked_up(out, trace.lookups(a))
    return trace.dims(a)


@rule(aten.copy_.default)
def copy(trace: Trace, out: Tensor, into: Tensor, source: Tensor, *args: Any) -> Dims:
    """`into.copy_(source)`, broadcasting."""
    for dim, again in zip(broadcast(trace, out, source), trace.dims(into), strict=True):
        trace.unify(dim, again)
    return trace.dims(into)


@rule(
    aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format,
    aten.new_full.default, aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default,
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default,
    aten.scalar_tensor.default,
)  # fmt: skip
def uniform(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """One value everywhere: any choice of indices is the same, so nothing is frozen."""
    return tuple(Dim(size) for size in out.shape)


@rule(aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default)
def fill(trace: Trace, out: Tensor, into: Tensor, *args: Any) -> Dims:
    """`into` becomes one value everywhere."""
    return trace.dims(into)


def _number(value: Any) -> float | None:
    """Return `value` as a number: Python scalars arrive as they are or wrapped in a 0-dimensional tensor."""
    if isinstance(value, Tensor):
        return float(value) if value.ndim == 0 and value.device.type != "meta" else None
    return float(value) if isinstance(value, (int, float)) else None


def _carry_norm_weight(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    for tensor in tree_leaves((a, b)):
        name = trace.weight_name(tensor)
        if name is not None and tensor.ndim == 1:
            trace.carry(out, Carrier(name, 0, 0, tensor.shape[0]))
