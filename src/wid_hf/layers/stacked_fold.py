"""The arithmetic of the folds of several weights of one shape at once, with its gradients.

A student of twelve layers has a hundred folds of small matrices, and on an accelerator each of their products waits for
its launch. Stacked, all weights of one shape take two products forward and at most five backward. Pure functions of
tensors; `FoldGroup` calls them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fold import cheapest_order

_memory = threading.local()


@dataclass(frozen=True)
class Stack:
    """n matrices of one shape, their maps, and the vectors beside them that have one of these maps.

    Attributes:
        matrices: `(d_out, d_in)`.
        maps: of axis 0 or 1 or both, `(k, d)`.
        beside: for each vector of a matrix the axis whose map it has: 0 for the bias of a linear layer.
        vectors: `(d,)`, n for each entry of `beside`.
        shifts: `(k,)`, added to the mapped vectors, n for each entry of `beside`; empty for none.
        result: dtype of what comes out; None for that of the matrices.
    """

    matrices: Sequence[Tensor]
    maps: Mapping[int, Sequence[Tensor]]
    beside: tuple[int, ...] = ()
    vectors: Sequence[Sequence[Tensor]] = ()
    shifts: Sequence[Sequence[Tensor]] = ()
    result: torch.dtype | None = None


def stacked_fold(stack: Stack, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Return the matrices with their axes mapped, then for each entry of `beside` the vectors, mapped and shifted.

    Only the arguments are saved for the backward pass, which computes intermediate products again.

    Args:
        stack: what is folded.
        dtype: in which products are computed.
    """
    count = len(stack.matrices)
    order = cheapest_order(stack.matrices[0].shape, {axis: len(maps[0]) for axis, maps in stack.maps.items()})
    form = _Form(count, order, stack.beside, len(stack.shifts), dtype, stack.result or stack.matrices[0].dtype)
    maps = [stack.maps[axis] for axis in order]
    tensors = [each for many in (stack.matrices, *maps, *stack.vectors, *stack.shifts) for each in many]
    return _divided(_StackedFold.apply(form, *tensors), count)


def stacked_selection(
    vectors: Sequence[Tensor], indices: Sequence[Tensor], factors: Sequence[Tensor], shifts: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return `vector[indices] * factors + shift` for n vectors `(d,)`, in their dtype; `shifts` may be empty."""
    found: tuple[Tensor, ...] = _StackedSelection.apply(len(vectors), *vectors, *indices, *factors, *shifts)
    return found


@dataclass(frozen=True)
class _Form:
    """What is no tensor among the arguments of `_StackedFold`."""

    count: int
    order: tuple[int, ...]
    beside: tuple[int, ...]
    shifts: int
    dtype: torch.dtype
    result: torch.dtype

    def kinds(self, each: Sequence[Any]) -> tuple[Any, list[Any], list[Any], list[Any]]:
        """Divide one thing for each kind of tensor: of the matrices, the maps, the vectors, the shifts."""
        maps, vectors = 1 + len(self.order), 1 + len(self.order) + len(self.beside)
        return each[0], [*each[1:maps]], [*each[maps:vectors]], [*each[vectors:]]

    def stacked(self, tensors: Sequence[Tensor]) -> _Stacked:
        """Stack the arguments, in the dtype of the products."""
        matrices, maps, vectors, shifts = self.kinds(_divided(tensors, self.count))
        of_maps = {
            axis: _in_turn(f"maps {at}", each).to(self.dtype)
            for at, (axis, each) in enumerate(zip(self.order, maps, strict=True))
        }
        return _Stacked(
            _in_turn("matrices", matrices).to(self.dtype),
            of_maps,
            *([torch.stack(each).to(self.dtype).unsqueeze(-1) for each in many] for many in (vectors, shifts)),
        )


@dataclass(frozen=True)
class _Stacked:
    """The arguments `(n, d_out, d_in)`, `(n, k, d)`, and as columns `(n, d, 1)` and `(n, k, 1)`."""

    matrices: Tensor
    maps: Mapping[int, Tensor]
    vectors: Sequence[Tensor]
    shifts: Sequence[Tensor]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of a mapped matrix."""
        whole = self.matrices.shape[1:]
        return tuple(self.maps[axis].shape[1] if axis in self.maps else size for axis, size in enumerate(whole))

    def products(self, order: Sequence[int]) -> list[Tensor]:
        """Return the matrices, then the matrices after each map."""
        found = [self.matrices]
        for axis in order:
            map_ = self.maps[axis]
            found.append(torch.bmm(map_, found[-1]) if axis == 0 else torch.bmm(found[-1], map_.mT))
        return found


class _StackedFold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: _Form, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.form = form
        stacked = form.stacked(tensors)
        found = [stacked.products(form.order)[-1]]
        for at, (axis, vector) in enumerate(zip(form.beside, stacked.vectors, strict=True)):
            map_ = stacked.maps[axis]
            shifted = bool(form.shifts)
            mapped = torch.baddbmm(stacked.shifts[at], map_, vector) if shifted else torch.bmm(map_, vector)
            found.append(mapped.squeeze(-1))
        return _results(ctx, form.count, [one for each in found for one in each.to(form.result).unbind()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        form, tensors = ctx.form, ctx.saved_tensors
        # A backward pass that is called under autocast would compute other products in half precision.
        with torch.autocast(tensors[0].device.type, enabled=False):
            found = _gradients(form, tensors, gradients, ctx.needs_input_grad[1:])
            return None, *_of_arguments(tensors, found, _needed(ctx.needs_input_grad[1:], gradients, form.count))


class _StackedSelection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.count = count
        vectors, indices, factors, *shifts = map(torch.stack, _divided(tensors, count))
        found = vectors.gather(1, indices) * factors
        return _results(ctx, count, (found + shifts[0] if shifts else found).to(vectors.dtype).unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, ctx.count
        vectors, indices, factors, *shifts = _divided(tensors, count)
        gradient = torch.stack(_filled(gradients, factors[0].shape, vectors[0]))
        of_vectors = None
        if any(ctx.needs_input_grad[1 : 1 + count]):
            scaled = gradient * torch.stack(factors)
            zeros = scaled.new_zeros(count, *vectors[0].shape)
            of_vectors = zeros.scatter_add_(1, torch.stack(indices), scaled)
        found = [of_vectors, None, None, *(gradient for _ in shifts)]
        return None, *_of_arguments(tensors, found, _needed(ctx.needs_input_grad[1:], gradients, count))


def _results(ctx: Any, count: int, results: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the results; those of weights that do not train, such as running means, require no gradient."""
    trains = [any(each) for each in zip(*_divided(ctx.needs_input_grad[1:], count), strict=True)]
    if not all(trains):
        ctx.mark_non_differentiable(*(one for at, one in enumerate(results) if not trains[at % count]))
    return tuple(results)


def _gradients(
    form: _Form, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of the arguments, stacked, from those of the results."""
    of_matrices, of_maps, of_vectors, of_shifts = form.kinds([any(each) for each in _divided(needed, form.count)])
    of_map = dict(zip(form.order, of_maps, strict=True))
    stacked = form.stacked(tensors)
    matrices, *vectors = _divided(gradients, form.count)
    shape = stacked.result
    like = tensors[0].new_empty(0, dtype=form.result)
    gradient = _in_turn("gradients", _filled(matrices, shape, like)).to(form.dtype)
    columns = [
        torch.stack(_filled(each, shape[axis : axis + 1], like)).to(form.dtype).unsqueeze(-1)
        for axis, each in zip(form.beside, vectors, strict=True)
    ]
    back, through = _through_products(form.order, stacked, gradient, of_map, of_matrices)
    mapped_back: list[Tensor | None] = []
    for axis, column, vector, wanted in zip(form.beside, columns, stacked.vectors, of_vectors, strict=True):
        if of_map[axis]:  # the vector has the map of its matrix
            through[axis] = torch.baddbmm(through[axis], column, vector.mT)
        mapped_back.append(torch.bmm(stacked.maps[axis].mT, column) if wanted else None)
    shifts = [column if wanted else None for column, wanted in zip(columns, of_shifts, strict=False)]
    return [back, *(through.get(axis) for axis in form.order), *mapped_back, *shifts]


def _through_products(
    order: Sequence[int], stacked: _Stacked, gradient: Tensor, of_map: Mapping[int, bool], of_matrices: bool
) -> tuple[Tensor | None, dict[int, Tensor]]:
    """Return the gradient of the matrices, if it is needed, and those of the maps that need one, by axis."""
    through: dict[int, Tensor] = {}
    products = stacked.products(order[:-1])  # the last one is the result itself
    for at in reversed(range(len(order))):
        axis, map_ = order[at], stacked.maps[order[at]]
        if of_map[axis]:
            pair = (gradient, products[at].mT) if axis == 0 else (gradient.mT, products[at])
            through[axis] = torch.bmm(*pair)
        if of_matrices or any(of_map[earlier] for earlier in order[:at]):
            gradient = torch.bmm(map_.mT, gradient) if axis == 0 else torch.bmm(gradient, map_)
    return gradient if of_matrices else None, through


def kept_stacks() -> list[Tensor]:
    """Return the memory of a CPU that folds of this thread use again and again."""
    return [*_memory.__dict__.get("stacks", {}).values()]


def drop_kept_stacks() -> None:
    """Let go of that memory: of students that are no longer used."""
    _memory.__dict__.pop("stacks", None)


def _filled(gradients: Sequence[Tensor | None], shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """Return the gradients of results, zeros for those that were not used."""
    return [like.new_zeros(shape) if each is None else each for each in gradients]


def _needed(needed: Sequence[bool], gradients: Sequence[Tensor | None], count: int) -> list[bool]:
    """Return which arguments get a gradient: like a parameter, a map of weights that were not used gets none."""
    used = [any(each is not None for each in member) for member in zip(*_divided(gradients, count), strict=True)]
    return [wanted and used[at % count] for at, wanted in enumerate(needed)]


def _of_arguments(
    tensors: Sequence[Tensor], stacks: Sequence[Tensor | None], needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    """Yield for each argument its part of a stack of gradients, in its shape and dtype."""
    count = len(tensors) // len(stacks)
    for stack, some, wanted in zip(stacks, _divided(tensors, count), _divided(needed, count), strict=True):
        if stack is None:
            yield from (None for _ in some)
            continue
        parts = stack.to(some[0].dtype).view(count, *some[0].shape).unbind()
        yield from (part if each else None for part, each in zip(parts, wanted, strict=True))


def _divided(many: Sequence[Any], count: int) -> list[tuple[Any, ...]]:
    return [tuple(many[at : at + count]) for at in range(0, len(many), count)]


def _in_turn(what: str, tensors: Sequence[Tensor]) -> Tensor:
    """Return matrices as one stack. On a CPU it lies where the last stack of this kind lay.

    New memory of this size costs a CPU three times what the copy costs. Nothing that lives on may point there.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first.unsqueeze(0)
    if not _may_use_again(first):
        return torch.stack([*tensors])
    size = len(tensors) * first.numel()
    kept: dict[Any, Tensor] = _memory.__dict__.setdefault("stacks", {})
    key = (what, first.dtype)
    if key not in kept or kept[key].numel() < size:
        kept[key] = torch.empty(size, dtype=first.dtype, device=first.device)
    place = kept[key][:size].view(len(tensors), *first.shape)
    return torch.stack([each.detach() for each in tensors], out=place)


def _may_use_again(tensor: Tensor) -> bool:
    """Return whether memory made now is plain memory, which every later forward can use."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False
    return torch._C._len_torch_dispatch_stack() == 0  # of modes, one may make tensors without numbers
