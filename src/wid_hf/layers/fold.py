"""The arithmetic of a fold: a tensor mapped along several of its axes, with its gradients.

Pure functions of tensors; `FoldedWeight` calls `fold` for every weight of a student.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fold(tensor: Tensor, maps: Mapping[int, Tensor]) -> Tensor:
    """Return `tensor` with each axis in `maps` taken from n to k by a matrix `(k, n)`: `R @ W @ C^T` for a weight.

    It is computed in the cheapest order, in the precision of the matrices. Only the arguments are saved for the
    backward pass, which computes intermediate products again: a student's step stores no activations of the fold.
    """
    order = cheapest_order(tensor.shape, {axis: len(matrix) for axis, matrix in maps.items()})
    result: Tensor = _Fold.apply(tensor, order, *(maps[axis] for axis in order))
    return result


def cheapest_order(shape: Sequence[int], sizes: Mapping[int, int]) -> tuple[int, ...]:
    """Return the axes of `sizes` in the order that needs fewest multiplications; among equals, the first."""
    return min(permutations(sizes), key=lambda order: multiplications(shape, sizes, order), default=())


def multiplications(shape: Sequence[int], sizes: Mapping[int, int], order: Iterable[int]) -> int:
    """Return how many multiplications it takes to bring axes of a tensor to `sizes`, one after the other."""
    now, total = list(shape), 0
    for axis in order:
        total += prod(now) * sizes[axis]
        now[axis] = sizes[axis]
    return total


def along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Return `tensor` with `axis` mapped by `matrix (k, n)`."""
    if axis == tensor.ndim - 1:
        return tensor @ matrix.T
    if tensor.ndim == 2:
        return matrix @ tensor
    return torch.tensordot(matrix, tensor, dims=([1], [axis])).movedim(0, axis)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: tuple[int, ...], *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(tensor, *matrices)
        ctx.order = order
        return _stages(tensor.to(matrices[0].dtype), order, matrices)[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # A backward pass that is called under autocast would compute the gradients in half precision.
        with torch.autocast(gradient.device.type, enabled=False):
            return _gradients(gradient, *ctx.saved_tensors, order=ctx.order, needed=ctx.needs_input_grad)


def _gradients(
    gradient: Tensor, tensor: Tensor, *matrices: Tensor, order: tuple[int, ...], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the arguments of `_Fold` that need one."""
    of_tensor, _, *of_matrices = needed
    stages = _stages(tensor.to(gradient.dtype), order[:-1], matrices[:-1])  # the last one is the result itself
    found: list[Tensor | None] = [None] * len(matrices)
    for at in reversed(range(len(matrices))):
        axis, stage = order[at], stages[at]
        if of_matrices[at]:
            rest = [other for other in range(stage.ndim) if other != axis]
            found[at] = torch.tensordot(gradient, stage, dims=(rest, rest))
        if of_tensor or any(of_matrices[:at]):
            gradient = along(gradient, matrices[at].T, axis)
    return (gradient.to(tensor.dtype) if of_tensor else None), None, *found


def _stages(tensor: Tensor, order: Sequence[int], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensor, then the tensor after each map."""
    stages = [tensor]
    for axis, matrix in zip(order, matrices, strict=True):
        stages.append(along(stages[-1], matrix, axis))
    return stages
