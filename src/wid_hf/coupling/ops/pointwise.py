"""Operations on each element: dimensions are unified after broadcasting from the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..carrier import Carrier
from ..dims import Dim
from ..op_registry import rule
from ..weight_inputs import number_of

if TYPE_CHECKING:
    from ..trace import Dims, Trace


def broadcast(trace: Trace, out: Tensor, *tensors: Tensor) -> Dims:
    """Return the dimensions of `out`, unifying those of `tensors` that were not broadcast."""
    result: list[Dim] = [Dim(size) for size in out.shape]
    for tensor in tensors:
        for place, dim in enumerate(trace.dims(tensor), start=out.ndim - tensor.ndim):
            if dim.size == out.shape[place] and dim.size != 1:
                trace.unify(dim, result[place])
    return tuple(result)


# The operations that torch's decompositions consist of.
_PRIMITIVES = """
    acos acosh add asin asinh atan atan2 atanh ceil cos cosh div eq erf erf_inv erfc exp expm1 floor fmod ge gt isfinite
    le lgamma log log10 log1p lt mul ne neg pow remainder round sin sinh sqrt sub tan tanh where
"""


# The names are of operations that torch, or an older torch, does not tag.
@rule(
    torch.Tag.pointwise,
    "aten.rsub.Tensor",
    "aten.hardswish.default",
    "aten.where.self",
    "aten.where.ScalarOther",
    "aten.where.ScalarSelf",
    "aten.where.Scalar",
    "aten.masked_fill.Scalar",
    "aten.masked_fill.Tensor",
    "aten.floor_divide.default",
    "aten.floor_divide.Scalar",
    "aten.floor_divide_.Tensor",
    "aten.__and__.Tensor",
    "aten.__and__.Scalar",
    "aten.__or__.Tensor",
    "aten.__or__.Scalar",
    "aten.polar.default",
    "aten.complex.default",
    "aten._conj.default",
    "aten._prelu_kernel.default",
    *(f"prims.{name}.default" for name in _PRIMITIVES.split()),
)
def elementwise(trace: Trace, out: Any, /, *args: Any, **kwargs: Any) -> Dims | list[Dims]:
    """`f(x, y, ...)` on each element; operands may be given by name, and there may be several results."""
    operands = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
    if isinstance(out, Tensor):
        return broadcast(trace, out, *operands)
    dims = broadcast(trace, out[0], *operands)
    return [dims for _ in out]


@rule("aten.log_sigmoid_forward.default")
def log_sigmoid(trace: Trace, out: Sequence[Tensor], a: Tensor) -> list[Dims]:
    """The result, and a tensor for the backward pass (empty on some devices)."""
    return [trace.dims(a), trace.dims(a) if out[1].shape == a.shape else tuple(Dim(size) for size in out[1].shape)]


@rule("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar")
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


@rule(
    "aten.mul.Tensor", "aten.mul.Scalar", "aten.mul_.Tensor", "aten.div.Tensor", "aten.div.Scalar", "aten.div_.Tensor"
)
def scaling(trace: Trace, out: Tensor, a: Any, b: Any) -> Dims:
    """`a * b` or `a / b`; products with a number are recorded, since a student's number may differ."""
    divides = "div" in trace.reason("").operation
    number = number_of(b)
    tensors = [tensor for tensor in (a, b) if isinstance(tensor, Tensor)]
    if number is not None and isinstance(a, Tensor):
        trace.scaled(1.0 / number if divides and number else number, a)
        trace.carry(out, trace.carrier(a))
    elif len(tensors) == 2:
        _carry_product(trace, out, a, b, divides)
    return broadcast(trace, out, *tensors)


def _carry_product(trace: Trace, out: Tensor, a: Tensor, b: Tensor, divides: bool) -> None:
    """Record which weight scales `a * b` or `a / b`.

    Only a product with a constant is sure to scale as `x` does: `x * f(x)` may not.
    """
    if trace.weight_name(a) is not None or trace.weight_name(b) is not None:
        if not divides:
            _carry_norm_weight(trace, out, a, b)
    elif not trace.depends_on_weights(b):
        trace.carry(out, trace.carrier(a))
    elif not divides and not trace.depends_on_weights(a):
        trace.carry(out, trace.carrier(b))


@rule(
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh.default",
    "aten._to_copy.default",
    "aten.contiguous.default",
    "aten.neg.default",
    "aten.positive.default",
    "aten.dropout.default",
)
def same_dims(trace: Trace, out: Tensor, a: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """A copy, or a linear operation on each element."""
    trace.carry(out, trace.carrier(a))
    trace.mark_view(out, a)
    trace.looked_up(out, trace.lookups(a))
    return trace.dims(a)


@rule("aten.copy_.default")
def copy(trace: Trace, out: Tensor, into: Tensor, source: Tensor, *args: Any) -> Dims:
    """`into.copy_(source)`, broadcasting."""
    trace.unify_each(broadcast(trace, out, source), trace.dims(into))
    return trace.dims(into)


@rule(
    "aten.full.default",
    "aten.zeros.default",
    "aten.ones.default",
    "aten.empty.memory_format",
    "aten.new_full.default",
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_empty.default",
    "aten.full_like.default",
    "aten.zeros_like.default",
    "aten.ones_like.default",
    "aten.empty_like.default",
    "aten.scalar_tensor.default",
)
def uniform(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """One value everywhere: any indices give the same tensor, so nothing is frozen."""
    return tuple(Dim(size) for size in out.shape)


@rule("aten.fill_.Scalar", "aten.fill_.Tensor", "aten.zero_.default")
def fill(trace: Trace, out: Tensor, into: Tensor, *args: Any) -> Dims:
    """`into` becomes one value everywhere."""
    return trace.dims(into)


def _carry_norm_weight(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    for tensor in (a, b):
        name = trace.weight_name(tensor)
        if name is not None and tensor.ndim == 1:
            trace.carry(out, Carrier(name, 0, 0, tensor.shape[0]))
