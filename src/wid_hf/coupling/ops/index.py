"""Look-ups: a dimension that is indexed by data is frozen, the others pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dims import Dim, find, split_concat
from ..op_registry import rule
from .pointwise import broadcast

if TYPE_CHECKING:
    from ..trace import Dims, Trace


LOOKED_UP = "is looked up by number"


@rule("aten.embedding.default")
def embedding(trace: Trace, out: Tensor, table: Tensor, indices: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """`table (rows, width)[indices (b, s)] -> (b, s, width)`."""
    rows, width = trace.dims(table)
    trace.freeze(rows, LOOKED_UP)
    if (name := trace.weight_name(table)) is not None:
        trace.looked_up(out, {name})
    return (*trace.dims(indices), width)


@rule("aten.index.Tensor")
def advanced_index(trace: Trace, out: Tensor, a: Tensor, indices: Sequence[Tensor | None]) -> Dims | None:
    """`a[i, j]`: the indexed dimensions become one broadcast block, in place if they are neighbours."""
    dims = trace.dims(a)
    given = {place: index for place, index in enumerate(indices) if index is not None}
    if _has_mask(indices):
        return _read_where(trace, out, dims, given[0]) if [*given] == [0] else None
    for place, index in given.items():
        _freeze_looked_up(trace, dims[place], index)
    shape = torch.broadcast_shapes(*(index.shape for index in given.values()))
    block = broadcast(trace, torch.empty(shape, device="meta"), *given.values())
    rest = [dim for place, dim in enumerate(dims) if place not in given]
    first, last = min(given), max(given)
    at = first if len(given) == last - first + 1 else 0
    return (*rest[:at], *block, *rest[at:])


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _read_where(trace: Trace, out: Tensor, dims: Dims, mask: Tensor) -> Dims:
    """`a[mask]`, where the mask covers the first dimensions: `(b, s, width) -> (n, width)`."""
    for dim in dims[: mask.ndim]:
        trace.freeze_if_used(out, dim, LOOKED_UP)
    return (trace.frozen(out.shape[0], "counts what a mask selects"), *dims[mask.ndim :])


def _freeze_looked_up(trace: Trace, dim: Dim, index: Tensor) -> None:
    """Freeze what `index` may point to: `[-2]` in the code counts from the end, so only the end is frozen.

    Falcon takes its one key head and one value head, which follow all query heads, in this way.
    """
    why = find(trace.dims(index)[0]).frozen if index.ndim == 1 and index.numel() else None
    is_literal = why is not None and why.operation == "aten.lift_fresh.default"
    if is_literal and int(index.max()) < 0 and (end := -int(index.min())) < dim.size:
        dim = split_concat(dim, [dim.size - end, end], trace.reason(LOOKED_UP))[1]
    trace.freeze(dim, LOOKED_UP)


@rule("aten.index_select.default")
def index_select(trace: Trace, out: Tensor, a: Tensor, place: int, indices: Tensor) -> Dims:
    """Pick indices of one dimension by number."""
    dims = trace.dims(a)
    place %= a.ndim
    trace.freeze(dims[place], LOOKED_UP)
    return (*dims[:place], *trace.dims(indices), *dims[place + 1 :])


@rule("aten.gather.default")
def gather(trace: Trace, out: Tensor, a: Tensor, place: int, indices: Tensor, **kwargs: Any) -> Dims:
    """Pick an index of one dimension for each element of `indices`."""
    dims, chosen = trace.dims(a), trace.dims(indices)
    for at, (dim, index_dim) in enumerate(zip(dims, chosen, strict=True)):
        if at == place % a.ndim:
            trace.freeze(dim, LOOKED_UP)
        elif dim.size == index_dim.size:
            trace.unify(dim, index_dim)
        else:
            trace.freeze(dim, "is read in part")
    return chosen


@rule("aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.linspace.default")
def positions(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """0, 1, 2, ...: a constant."""
    return trace.frozen_each(out.shape, "counts positions")


@rule("aten.topk.default")
def largest(
    trace: Trace, out: Sequence[Tensor], a: Tensor, count: int, dim: int = -1, *args: Any, **kwargs: Any
) -> list[Dims]:
    """The largest elements and their positions."""
    return ranking(trace, out, a, dim)


@rule("aten.sort.default", "aten.sort.stable")
def ranking(trace: Trace, out: Sequence[Tensor], a: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> list[Dims]:
    """All elements in order and their former positions."""
    place = dim % a.ndim
    dims = trace.dims(a)
    trace.freeze(dims[place], "is ranked, and the ranks are numbers")
    kept: Dim = trace.frozen(out[0].shape[place], "counts ranks")
    result = (*dims[:place], kept, *dims[place + 1 :])
    return [result, result]


@rule("aten.index_put.default", "aten.index_put_.default")
def write_at(
    trace: Trace, out: Tensor, a: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: Any
) -> Dims | None:
    """`a[i, j] = values`, or `a[mask] = values` where the mask covers the first dimensions."""
    if _has_mask(indices):
        return _write_where(trace, a, indices, values)
    written = torch.empty(a.shape, device="meta")[tuple(_blanks(a, indices))]
    _unify_written(trace, advanced_index(trace, written, a, indices) or (), values)
    return trace.dims(a)


def _unify_written(trace: Trace, into: Dims, values: Tensor) -> None:
    """Unify the dimensions of what is written with those written to, from the right, except broadcast ones."""
    for dim, given in zip(into[::-1], trace.dims(values)[::-1], strict=False):
        if dim.size == given.size:
            trace.unify(dim, given)


def _write_where(trace: Trace, a: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Dims | None:
    mask, *others = indices
    if mask is None or any(other is not None for other in others):
        return None
    dims = trace.dims(a)
    trace.freeze_each(dims[: mask.ndim], LOOKED_UP)
    _unify_written(trace, dims[mask.ndim :], values)
    return dims


@rule("aten.masked_scatter.default", "aten.masked_scatter_.default")
def fill_where(trace: Trace, out: Tensor, a: Tensor, mask: Tensor, source: Tensor) -> Dims | None:
    """Put rows of `source (n, width)` where `mask` is set: image features replace their placeholder tokens.

    `width` keeps its meaning only if the mask covers whole rows.
    """
    whole_rows = bool((mask == mask[..., :1]).all())
    if not whole_rows or source.shape[-1] != a.shape[-1]:
        return None
    dims = trace.dims(a)
    trace.freeze_each(dims[:-1], "is filled in the order of a mask")
    trace.freeze_each(trace.dims(source)[:-1], "is read in the order of a mask")
    trace.unify(dims[-1], trace.dims(source)[-1])
    return dims


def _blanks(a: Tensor, indices: Sequence[Tensor | None]) -> list[Any]:
    return [slice(None) if index is None else torch.zeros_like(index, device="meta") for index in indices]


@rule(
    "aten.scatter.src",
    "aten.scatter.value",
    "aten.scatter_.src",
    "aten.scatter_.value",
    "aten.scatter_add.default",
    "aten.scatter_add_.default",
)
def scatter(trace: Trace, out: Tensor, a: Tensor, place: int, indices: Tensor, source: Any, **kwargs: Any) -> Dims:
    """Write an index of one dimension for each element of `indices`."""
    dims = trace.dims(a)
    gather(trace, indices, a, place, indices)
    if isinstance(source, Tensor):
        _unify_written(trace, trace.dims(indices), source)
    return dims


@rule("aten.index_add.default", "aten.index_add_.default", "aten.index_copy.default", "aten.index_copy_.default")
def write_rows(
    trace: Trace, out: Tensor, a: Tensor, place: int, indices: Tensor, source: Tensor, **kwargs: Any
) -> Dims:
    """Write or add whole slices at indices of one dimension."""
    dims = trace.dims(a)
    place %= a.ndim
    trace.freeze(dims[place], LOOKED_UP)
    for at, (dim, given) in enumerate(zip(dims, trace.dims(source), strict=True)):
        if at != place:
            trace.unify(dim, given)
    return dims
