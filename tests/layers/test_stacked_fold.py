"""Folds of several weights at once: the results and gradients of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from wid_hf.layers.stacked_fold import Stack, stacked_fold, stacked_selection

OUT, IN, ROWS, COLUMNS = 7, 5, 4, 3
CASES = [
    (count, axes, beside, shifted)
    for count, axes, beside, shifted in product((1, 3), ((0,), (1,), (0, 1)), ((), (0,), (1,), (0, 0)), (False, True))
    if set(beside) <= set(axes) and (beside or not shifted)
]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def stack_of(count: int, axes: tuple[int, ...], beside: tuple[int, ...], shifted: bool) -> Stack:
    def many(*shape: int) -> list[Tensor]:
        return [random(*shape) for _ in range(count)]

    maps = {axis: many((ROWS, COLUMNS)[axis], (OUT, IN)[axis]) for axis in axes}
    vectors = [many((OUT, IN)[axis]) for axis in beside]
    return Stack(many(OUT, IN), maps, beside, vectors, [many((ROWS, COLUMNS)[a]) for a in beside] if shifted else [])


def one_by_one(stack: Stack) -> list[list[Tensor]]:
    def mapped(at: int) -> Tensor:
        rows = stack.maps[0][at] @ stack.matrices[at] if 0 in stack.maps else stack.matrices[at]
        return rows @ stack.maps[1][at].T if 1 in stack.maps else rows

    places = range(len(stack.matrices))
    found = [[mapped(at) for at in places]]
    for number, axis in enumerate(stack.beside):
        shifts = stack.shifts[number] if stack.shifts else [0.0] * len(places)
        found.append([stack.maps[axis][at] @ stack.vectors[number][at] + shifts[at] for at in places])
    return found


def arguments(stack: Stack) -> list[Tensor]:
    return [each for many in (stack.matrices, *stack.maps.values(), *stack.vectors, *stack.shifts) for each in many]


@pytest.mark.parametrize(("count", "axes", "beside", "shifted"), CASES)
def test_stacked_folds_and_their_gradients_are_those_of_each_weight(
    count: int, axes: tuple[int, ...], beside: tuple[int, ...], shifted: bool
) -> None:
    torch.manual_seed(0)
    stack = stack_of(count, axes, beside, shifted)
    found = [each for some in stacked_fold(stack, torch.float64) for each in some]
    wanted = [each for some in one_by_one(stack) for each in some]
    torch.testing.assert_close(found, wanted)
    assert all(each.is_contiguous() for each in found)  # like a loaded weight
    weights = [torch.randn_like(each) for each in wanted]
    of_found, of_wanted = (torch.autograd.grad(each, arguments(stack), weights) for each in (found, wanted))
    torch.testing.assert_close(of_found, of_wanted)


@pytest.mark.parametrize("selection", [False, True])
def test_what_a_backward_pass_did_not_use_gets_no_gradient(selection: bool) -> None:
    torch.manual_seed(0)
    if selection:
        vectors, shifts = ([random(size) for _ in range(3)] for size in (5, 3))
        indices = [torch.tensor([4, 0, 2])] * 3
        factors = [torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)] * 3
        results = stacked_selection(vectors, indices, factors, shifts)
        wanted: Sequence[Tensor] = [v[i] * f + s for v, i, f, s in zip(vectors, indices, factors, shifts, strict=True)]
        torch.testing.assert_close(list(results), wanted)
        leaves = [*vectors, *shifts]
    else:
        stack = stack_of(3, (0, 1), (0,), True)
        results, wanted = stacked_fold(stack, torch.float64)[0], one_by_one(stack)[0]
        leaves = [*stack.matrices, *stack.maps[0], *stack.maps[1]]

    def gradients(of: Sequence[Tensor]) -> list[Tensor | None]:
        return list(torch.autograd.grad(of[0].square().sum() + of[2].sum(), leaves, allow_unused=True))

    found, right = gradients(results), gradients(wanted)
    assert [each is None for each in found] == [each is None for each in right]
    assert sum(each is None for each in found) == len(leaves) // 3
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


def test_a_vector_that_alone_was_used_gives_its_map_a_gradient() -> None:
    torch.manual_seed(0)
    stack = stack_of(2, (0, 1), (0,), False)

    def gradient(fold: Callable[[Stack], Sequence[Sequence[Tensor]]]) -> Tensor:
        return torch.autograd.grad(fold(stack)[1][1].square().sum(), stack.maps[0][1])[0]

    torch.testing.assert_close(gradient(lambda stack: stacked_fold(stack, torch.float64)), gradient(one_by_one))


def test_products_in_half_precision_give_results_and_gradients_in_the_precision_of_the_arguments() -> None:
    torch.manual_seed(0)
    many = {size: [torch.randn(size, requires_grad=True) for _ in range(2)] for size in ((64, 48), (32, 64), (24, 48))}
    matrices, rows, columns = many.values()
    stack = Stack(matrices, {0: rows, 1: columns})
    exact, half = (stacked_fold(stack, dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert {each.dtype for each in half} == {torch.float32}
    assert 0 < float((half[0] - exact[0]).detach().norm() / exact[0].detach().norm()) < 0.01
    wanted, found = (torch.autograd.grad(each[1].square().sum(), rows[1])[0] for each in (exact, half))
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.02


def test_stacks_of_one_kind_lie_in_the_same_place_without_changing_earlier_results() -> None:
    torch.manual_seed(0)
    stacks = [stack_of(3, (0, 1), (), False) for _ in range(2)]
    found = [stacked_fold(stack, torch.float64)[0] for stack in stacks]
    loss = sum(each.square().sum() for some in found for each in some)
    wanted = sum(each.square().sum() for stack in stacks for each in one_by_one(stack)[0])
    leaves = [leaf for stack in stacks for leaf in arguments(stack)]
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves))


def test_what_does_not_train_requires_no_gradient_beside_what_does() -> None:
    vectors, indices, factors = (
        [random(5), random(5).detach()],
        [torch.tensor([3, 1])] * 2,
        [torch.ones(2).double()] * 2,
    )
    trained, running_mean = stacked_selection(vectors, indices, factors, [])
    assert (trained.requires_grad, running_mean.requires_grad) == (True, False)
    stack = stack_of(2, (0,), (), False)
    frozen = [stack.matrices[1].requires_grad_(False), stack.maps[0][1].requires_grad_(False)]
    assert [each.requires_grad for each in stacked_fold(stack, torch.float64)[0]] == [True, False]
    stacked_fold(stack, torch.float64)[0][0].sum().backward()
    assert all(each.grad is None for each in frozen)
