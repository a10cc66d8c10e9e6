"""Products of matrices: contracted dimensions are one dimension, the others pass through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..carrier import Carrier
from ..op_registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace


@rule("aten.mm.default")
def matrix_product(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    """`(m, k) @ (k, n) -> (m, n)`: both k are one dimension."""
    (m, k), (k_again, n) = trace.dims(a), trace.dims(b)
    trace.unify(k, k_again)
    if (weight := trace.weight_name(b)) is not None:
        axis = 0 if trace.dims(b)[1] is trace.weight_dims[weight][0] else 1
        trace.carry(out, Carrier(weight, axis, 0, n.size))
    return m, n


@rule("aten.addmm.default")
def biased_matrix_product(trace: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **scales: float) -> Dims:
    """`bias (n) + (m, k) @ (k, n) -> (m, n)`."""
    m, n = matrix_product(trace, out, a, b)
    if scales.get("alpha", 1.0) != 1.0:
        trace.scaled(scales["alpha"], out)
    trace.unify(trace.dims(bias)[-1], n)
    if len(trace.dims(bias)) > 1:
        trace.unify(trace.dims(bias)[0], m)
    return m, n


@rule("aten.bmm.default")
def batched_matrix_product(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    """`(batch, m, k) @ (batch, k, n) -> (batch, m, n)`."""
    (batch, m, k), (batch_again, k_again, n) = trace.dims(a), trace.dims(b)
    trace.unify(batch, batch_again)
    trace.unify(k, k_again)
    left, right = trace.carrier(a), trace.carrier(b)
    if left is not None and right is not None and left.overlaps(right):
        return batch, m, n  # scaling these weights by s scales the product by s * s
    trace.carry(out, left or right)
    if left is not None and right is not None:
        # Attention logits: a scale on the keys is a scale on the queries.
        trace.carried_by[right] = left
    return batch, m, n


@rule("aten.baddbmm.default")
def biased_batched_matrix_product(
    trace: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **scales: float
) -> Dims:
    """`bias + (batch, m, k) @ (batch, k, n)`, the bias broadcast from the right."""
    dims = batched_matrix_product(trace, out, a, b)
    if scales.get("alpha", 1.0) != 1.0:
        trace.scaled(scales["alpha"], out)
    for given, result in zip(trace.dims(bias)[::-1], dims[::-1], strict=False):
        trace.unify(given, result)
    return dims


@rule("aten.mv.default")
def matrix_vector_product(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    """`(m, k) @ (k) -> (m)`."""
    (m, k), (k_again,) = trace.dims(a), trace.dims(b)
    trace.unify(k, k_again)
    return (m,)


@rule("aten.dot.default")
def scalar_product(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> Dims:
    """`(k) @ (k) -> ()`."""
    trace.unify(trace.dims(a)[0], trace.dims(b)[0])
    return ()


@rule("aten._grouped_mm.default")
def expert_products(trace: Trace, out: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Dims | None:
    """`(tokens, k) @ (experts, k, n) -> (tokens, n)`: the data decide which expert takes which tokens."""
    if (a.ndim, b.ndim) != (2, 3):
        return None
    (tokens, k), (experts, k_again, n) = trace.dims(a), trace.dims(b)
    trace.freeze(experts, "is chosen by number")
    trace.unify(k, k_again)
    return tokens, n


@rule("aten.linalg_solve_triangular.default")
def triangular_solution(trace: Trace, out: Tensor, a: Tensor, b: Tensor, *, left: bool = True, **kwargs: Any) -> Dims:
    """`x` in `a (n, n) @ x = b (n, k)`, or `x @ a = b (k, n)`: n is order-dependent."""
    *batch, n, n_again = trace.dims(a)
    result = trace.dims(b)
    trace.freeze_each((n, n_again, result[-2 if left else -1]), "is order-dependent")
    for mine, theirs in zip(batch[::-1], result[:-2][::-1], strict=False):
        trace.unify(mine, theirs)
    return result
