"""Operations that move, split, join or repeat dimensions without touching values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..carrier import Carrier
from ..dims import Dim, concat, find, freeze, product, regroup, split_concat
from ..op_registry import rule

if TYPE_CHECKING:
    from ..trace import Dims, Trace

WINDOW = "is read in overlapping windows"
PART = "is read in part"
CUT = "is cut at a place that does not match its structure"


@rule("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten._reshape_alias.default")
def reshape(trace: Trace, out: Tensor, a: Tensor, *args: Any) -> Dims:
    """`(b, s, heads * width) -> (b, s, heads, width)` and back."""
    trace.carry(out, trace.carrier(a))
    trace.looked_up(out, trace.lookups(a))
    if out.numel() == 0:
        return trace.frozen_each(out.shape, "is empty")
    why = trace.reason("is split by a reshape into sizes that do not match its structure")
    return tuple(regroup(trace.dims(a), out.shape, why))


def _moved(trace: Trace, out: Tensor, a: Tensor) -> None:
    trace.carry(out, trace.carrier(a))
    trace.mark_view(out, a)
    trace.looked_up(out, trace.lookups(a))


@rule("aten.t.default")
def matrix_transpose(trace: Trace, out: Tensor, a: Tensor) -> Dims:
    """`(m, n) -> (n, m)`."""
    _moved(trace, out, a)
    return trace.dims(a)[::-1]


@rule("aten.transpose.int")
def transpose(trace: Trace, out: Tensor, a: Tensor, first: int, second: int) -> Dims:
    """Exchange two dimensions."""
    _moved(trace, out, a)
    dims = list(trace.dims(a))
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


@rule("aten.permute.default")
def permute(trace: Trace, out: Tensor, a: Tensor, order: Sequence[int]) -> Dims:
    """Bring the dimensions into `order`."""
    _moved(trace, out, a)
    return tuple(trace.dims(a)[place] for place in order)


@rule("aten.unsqueeze.default")
def unsqueeze(trace: Trace, out: Tensor, a: Tensor, place: int) -> Dims:
    """Insert a dimension of size 1."""
    _moved(trace, out, a)
    dims = list(trace.dims(a))
    dims.insert(place % out.ndim, Dim(1))
    return tuple(dims)


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(trace: Trace, out: Tensor, a: Tensor, places: int | Sequence[int] | None = None) -> Dims:
    """Drop dimensions of size 1."""
    _moved(trace, out, a)
    dropped = {place for place in places_among(a.ndim, places) if a.shape[place] == 1}
    return tuple(dim for place, dim in enumerate(trace.dims(a)) if place not in dropped)


def places_among(ndim: int, places: int | Sequence[int] | None) -> list[int]:
    """Return places of dimensions counted from the front, each once; None means all of them."""
    if places is None:
        return list(range(ndim))
    listed = [places] if isinstance(places, int) else places
    return sorted({place % ndim for place in listed}) if ndim else []


@rule("aten.expand.default")
def expand(trace: Trace, out: Tensor, a: Tensor, *args: Any, **kwargs: Any) -> Dims:
    """Repeat dimensions of size 1 without copying: all repetitions are alike, so they are free to shrink."""
    trace.carry(out, trace.carrier(a))
    trace.looked_up(out, trace.lookups(a))
    dims: list[Dim] = [Dim(size) for size in out.shape]
    for place, dim in enumerate(trace.dims(a), start=out.ndim - a.ndim):
        if dim.size == out.shape[place]:
            dims[place] = dim
    return tuple(dims)


@rule("aten.repeat.default")
def repeat(trace: Trace, out: Tensor, a: Tensor, repeats: Sequence[int]) -> Dims:
    """Concatenate copies: the repetition is the outer factor."""
    padded = [Dim(1)] * (out.ndim - a.ndim) + list(trace.dims(a))
    return tuple(product([Dim(count), dim]) for count, dim in zip(repeats, padded, strict=True))


def _cut(carrier: Carrier | None, a: Tensor, place: int, start: int, stop: int) -> Carrier | None:
    """Narrow `carrier` to [start, stop) if it spans exactly the last dimension; else return a share of it."""
    if carrier is None:
        return None
    if place == a.ndim - 1 and carrier.share == 1 and carrier.stop - carrier.start == a.shape[place]:
        return replace(carrier, start=carrier.start + start, stop=carrier.start + stop)
    return replace(carrier, share=carrier.share * Fraction(stop - start, a.shape[place]))


def _pieces(trace: Trace, outs: Sequence[Tensor], a: Tensor, place: int, sizes: Sequence[int]) -> list[Dims]:
    dims = trace.dims(a)
    cut = split_concat(dims[place], sizes, trace.reason(CUT))
    start = 0
    for out, size in zip(outs, sizes, strict=True):
        trace.carry(out, _cut(trace.carrier(a), a, place, start, start + size))
        start += size
    return [(*dims[:place], piece, *dims[place + 1 :]) for piece in cut]


@rule("aten.split.Tensor", "aten.split_with_sizes.default")
def split(trace: Trace, outs: Sequence[Tensor], a: Tensor, sizes: int | Sequence[int], place: int = 0) -> list[Dims]:
    """Cut into consecutive parts."""
    place %= a.ndim
    return _pieces(trace, outs, a, place, [out.shape[place] for out in outs])


@rule("aten.slice.Tensor")
def slice_(
    trace: Trace,
    out: Tensor,
    a: Tensor,
    place: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Dims:
    """Take consecutive indices of one dimension, or every step-th one: the outer factor of `rest x step`."""
    place %= a.ndim
    dims, kept = trace.dims(a), out.shape[place]
    first = slice(start, None).indices(a.shape[place])[0]
    if kept == a.shape[place]:
        _moved(trace, out, a)
        return dims
    if kept == 0:
        trace.freeze(dims[place], PART)
        piece = trace.frozen(0, PART)
    elif step != 1:
        piece = _every(trace, dims[place], first, kept, step)
    else:
        piece = _stretch(trace, dims[place], first, kept)
        trace.carry(out, _cut(trace.carrier(a), a, place, first, first + kept))
    return (*dims[:place], piece, *dims[place + 1 :])


def _stretch(trace: Trace, dim: Dim, first: int, kept: int) -> Dim:
    """Return the indices `[first, first + kept)` of `dim`."""
    sizes = [size for size in (first, kept, dim.size - first - kept) if size]
    return split_concat(dim, sizes, trace.reason(CUT))[1 if first else 0]


def _every(trace: Trace, dim: Dim, first: int, kept: int, step: int) -> Dim:
    """Return every `step`-th index of an interleaved `dim`: `gate, up, gate, up` is `pairs x 2`."""
    why = trace.reason("is read with a stride")
    if first < step and kept * step == dim.size:
        rest, inner = regroup([dim], [kept, step], why)
        freeze(inner, why)
        return rest
    freeze(dim, why)
    return Dim(kept, why)


@rule("aten.select.int")
def select(trace: Trace, out: Tensor, a: Tensor, place: int, index: int) -> Dims:
    """Take one index: which one matters, so the dimension is frozen."""
    dims = trace.dims(a)
    place %= a.ndim
    trace.freeze_if_used(out, dims[place], f"is indexed at {index}")
    return dims[:place] + dims[place + 1 :]


@rule("aten.unbind.int")
def unbind(trace: Trace, outs: Sequence[Tensor], a: Tensor, place: int = 0) -> list[Dims]:
    """Take every index separately."""
    return [select(trace, out, a, place, index) for index, out in enumerate(outs)]


def _rejoin(trace: Trace, out: Tensor, carriers: Sequence[Carrier | None]) -> None:
    """Shares of one carrier add up: rotated halves are the whole head again."""
    pieces = [carrier for carrier in carriers if carrier is not None]
    if len(pieces) == len(carriers) and len({replace(piece, share=Fraction(1)) for piece in pieces}) == 1:
        trace.carry(out, replace(pieces[0], share=sum((piece.share for piece in pieces), Fraction(0))))


@rule("aten.cat.default")
def cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], place: int = 0) -> Dims:
    """Concatenate tensors along one dimension."""
    tensors = [tensor for tensor in tensors if tensor.shape != (0,)]
    place %= out.ndim
    first, *others = (trace.dims(tensor) for tensor in tensors)
    for dims in others:
        trace.unify_each(first[:place] + first[place + 1 :], dims[:place] + dims[place + 1 :])
    _rejoin(trace, out, [trace.carrier(tensor) for tensor in tensors])
    joined = concat([dims[place] for dims in (first, *others)]) if others else find(first[place])
    return (*first[:place], joined, *first[place + 1 :])


@rule("aten.stack.default")
def stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], place: int = 0) -> Dims:
    """Put tensors along a new dimension, whose positions differ in meaning: it is frozen."""
    first, *others = (trace.dims(tensor) for tensor in tensors)
    for dims in others:
        trace.unify_each(first, dims)
    place %= out.ndim
    return (*first[:place], trace.frozen(len(tensors), "counts stacked tensors"), *first[place:])


@rule("aten.constant_pad_nd.default")
def pad(trace: Trace, out: Tensor, a: Tensor, widths: Sequence[int], value: float = 0) -> Dims:
    """Lengthen dimensions at their ends; their own indices then have fixed positions, so they are frozen."""
    dims = list(trace.dims(a))
    for place, (old, new) in enumerate(zip(a.shape, out.shape, strict=True)):
        if old != new:
            trace.freeze(dims[place], "is padded")
            dims[place] = trace.frozen(new, "is padded")
    return tuple(dims)


@rule("aten.unfold.default")
def windows(trace: Trace, out: Tensor, a: Tensor, place: int, size: int, step: int) -> Dims:
    """Overlapping windows of one dimension; the positions in a window are a new last dimension."""
    dims = list(trace.dims(a))
    trace.freeze(dims[place], WINDOW)
    dims[place] = trace.frozen(out.shape[place], "counts windows")
    return (*dims, trace.frozen(size, "is a position in a window"))


@rule("aten.as_strided.default")
def strided(
    trace: Trace, out: Tensor, a: Tensor, sizes: Sequence[int], strides: Sequence[int], offset: int | None = None
) -> Dims | None:
    """A view by memory addresses (overlapping windows): dimensions whose stride and size are kept pass through."""
    if (offset is not None and offset != a.storage_offset()) or not _dense(a):
        return None
    own = {(a.shape[place], a.stride(place)): dim for place, dim in enumerate(trace.dims(a)) if dim.size > 1}
    steps = list(zip(sizes, strides, strict=True))
    dims = [
        own[step]
        if step in own and _is_in_address(step, steps[:at] + steps[at + 1 :])
        else trace.frozen(step[0], WINDOW)
        for at, step in enumerate(steps)
    ]
    trace.freeze_each([dim for dim in trace.dims(a) if dim not in dims], WINDOW)
    return tuple(dims)


def _is_in_address(step: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
    """Return whether the memory address determines the index along the dimension with this (size, stride).

    It does where the strides of all others are multiples of the dimension's whole extent, or are together too small
    to reach its stride.
    """
    size, stride = step
    moving = [(n, s) for n, s in others if n > 1]
    whole = all(s % (stride * size) == 0 for _, s in moving if s >= stride)
    return whole and sum((n - 1) * s for n, s in moving if s < stride) < stride


def _dense(a: Tensor) -> bool:
    """Return whether the elements of `a` fill their memory without gaps or overlaps, in any order."""
    extent = 1
    for stride, size in sorted(zip(a.stride(), a.shape, strict=True)):
        if size > 1:
            if stride != extent:
                return False
            extent *= size
    return True


@rule("aten.as_strided_.default")
def restrided(trace: Trace, out: Tensor, a: Tensor, sizes: Sequence[int], *args: Any) -> Dims | None:
    """A tensor whose strides are changed in place: pooling to one position does this to dimensions of size 1."""
    dims = trace.dims(a)
    wide = [stride for stride, size in zip(out.stride(), sizes, strict=True) if size > 1]
    same = [dim.size for dim in dims] == list(sizes) and wide == sorted(wide, reverse=True) and _dense(out)
    return dims if same else None


@rule("aten.view_as_complex.default")
def as_complex(trace: Trace, out: Tensor, a: Tensor) -> Dims:
    """`(..., 2) -> (...)`: the index says which is the real and which the imaginary part."""
    *dims, parts = trace.dims(a)
    trace.freeze(parts, "is a complex number's real and imaginary part")
    return tuple(dims)


@rule("aten.view_as_real.default")
def as_real(trace: Trace, out: Tensor, a: Tensor) -> Dims:
    """`(...) -> (..., 2)`."""
    return (*trace.dims(a), trace.frozen(2, "is a complex number's real and imaginary part"))


@rule("aten.diagonal.default")
def diagonal(trace: Trace, out: Tensor, a: Tensor, offset: int = 0, first: int = 0, second: int = 1) -> Dims:
    """Equal indices of two dimensions, as a new last one: only the main diagonal of a square leaves them free."""
    dims = trace.dims(a)
    first, second = first % a.ndim, second % a.ndim
    rest = tuple(dim for place, dim in enumerate(dims) if place not in (first, second))
    if offset == 0 and a.shape[first] == a.shape[second]:
        trace.unify(dims[first], dims[second])
        return (*rest, dims[first])
    trace.freeze_each((dims[first], dims[second]), "is order-dependent")
    return (*rest, trace.frozen(out.shape[-1], "is order-dependent"))


@rule("aten.glu.default")
def gated(trace: Trace, out: Tensor, a: Tensor, place: int = -1) -> Dims:
    """The first half of a dimension times a gate from the second."""
    dims = list(trace.dims(a))
    half = out.shape[place]
    first, second = split_concat(dims[place], [half, half], trace.reason("does not divide into halves"))
    trace.unify(first, second)
    dims[place] = first
    return tuple(dims)
