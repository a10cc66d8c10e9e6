"""Fused attention kernels, for devices and models that reach one in spite of the math backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..op_registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_flash_attention.default",
)
def fused_attention(
    trace: Trace, out: Sequence[Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> list[Dims | None]:
    """`(b, heads, q, d), (b, heads, k, d), (b, heads, k, v) -> (b, heads, q, v)` and values for the backward pass."""
    (batch, heads, q, width), (batch_k, heads_k, k, width_k) = trace.dims(query), trace.dims(key)
    batch_v, heads_v, k_again, v = trace.dims(value)
    trace.unify_each((batch, batch, heads, heads, width, k), (batch_k, batch_v, heads_k, heads_v, width_k, k_again))
    extras = [extra for extra in out[1:] if isinstance(extra, Tensor)]
    rest: list[Dims | None] = [trace.frozen_each(extra.shape, "is bookkeeping") for extra in extras]
    return [(batch, heads, q, v), *rest]
