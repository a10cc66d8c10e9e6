"""Operations that reduce a dimension, or that treat all its indices alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..dims import Dim
from ..op_registry import rule
from .view import places_among

if TYPE_CHECKING:
    from ..trace import Dims, Trace


def _reduced(trace: Trace, out: Tensor, a: Tensor, places: int | Sequence[int] | None, keep: bool) -> Dims:
    gone = places_among(a.ndim, None if places == [] else places)
    for place in gone:
        trace.note_reduction(trace.dims(a)[place])
    left = [Dim(1) if place in gone else dim for place, dim in enumerate(trace.dims(a))]
    return tuple(dim for place, dim in enumerate(left) if keep or place not in gone)


@rule(
    "aten.mean.dim",
    "aten.sum.dim_IntList",
    "aten.amax.default",
    "aten.amin.default",
    "aten.prod.dim_int",
    "aten.any.dim",
    "aten.all.dim",
    "aten.logsumexp.default",
)
def reduction(trace: Trace, out: Tensor, a: Tensor, places: Any = None, keep: bool = False, **kwargs: Any) -> Dims:
    """A symmetric function of all indices of some dimensions."""
    return _reduced(trace, out, a, places, keep)


@rule(
    "prims.sum.default",
    "prims.prod.default",
    "prims.amax.default",
    "prims.amin.default",
    "prims.var.default",
)
def primitive_reduction(trace: Trace, out: Tensor, a: Tensor, places: Any = None, *args: Any, **kwargs: Any) -> Dims:
    """The reductions in torch's decompositions: the dimensions are gone."""
    return _reduced(trace, out, a, places, keep=False)


@rule("aten.var.correction", "aten.std.correction", "aten.linalg_vector_norm.default")
def spread(trace: Trace, out: Tensor, a: Tensor, *args: Any, keepdim: bool = False, **kwargs: Any) -> Dims:
    """Variance, deviation or norm; the result's rank says whether reduced dimensions stay with size 1."""
    places = next((arg for arg in args if isinstance(arg, (list, tuple))), kwargs.get("dim"))
    return _reduced(trace, out, a, places, out.ndim == a.ndim)


@rule(
    "aten.sum.default",
    "aten.mean.default",
    "aten.max.default",
    "aten.min.default",
    "aten.any.default",
    "aten.all.default",
    "aten.prod.default",
)
def total(trace: Trace, out: Tensor, a: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """A symmetric function of all elements."""
    return ()


@rule("aten._softmax.default", "aten._log_softmax.default", "aten._safe_softmax.default")
def softmax(trace: Trace, out: Tensor, a: Tensor, place: int, *args: Any, **kwargs: Any) -> Dims:
    """All indices are treated alike; the result no longer scales with its input."""
    return trace.dims(a)


@rule("aten.max.dim", "aten.min.dim")
def extreme(trace: Trace, out: Sequence[Tensor], a: Tensor, place: int, keep: bool = False) -> list[Dims]:
    """The largest element and its position: the position is a number, so the dimension is frozen."""
    trace.freeze(trace.dims(a)[place], "is reduced by argmax")
    dims = _reduced(trace, out[0], a, place, keep)
    return [dims, dims]


@rule("aten.argmax.default", "aten.argmin.default")
def position(trace: Trace, out: Tensor, a: Tensor, place: int | None = None, keep: bool = False) -> Dims:
    """The position of the largest element."""
    trace.freeze_each([trace.dims(a)[at] for at in places_among(a.ndim, place)], "is reduced by argmax")
    return _reduced(trace, out, a, place, keep)


@rule("aten.roll.default")
def roll(
    trace: Trace, out: Tensor, a: Tensor, shifts: Sequence[int], places: Sequence[int] = (), **kwargs: Any
) -> Dims:
    """Indices move by `shifts`: the named dimensions are frozen, all of them if none is named."""
    trace.freeze_each([trace.dims(a)[place] for place in places or range(a.ndim)], "is order-dependent")
    return trace.dims(a)


@rule("aten.cumsum.default", "aten.cumprod.default", "aten.flip.default", "aten.tril.default", "aten.triu.default")
def ordered(trace: Trace, out: Tensor, a: Tensor, places: int | Sequence[int] = 0, *args: Any, **kwargs: Any) -> Dims:
    """The order of indices matters: the dimension along which it runs (for triangles, the last two) is frozen."""
    is_triangle = "tri" in trace.reason("").operation
    chosen = places_among(a.ndim, (-2, -1) if is_triangle else places)
    trace.freeze_each([trace.dims(a)[place] for place in chosen], "is order-dependent")
    return trace.dims(a)
