"""A fold is the product that it says, with its gradients, in the cheapest order, and keeps nothing in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wid_hf.layers.fold import cheapest_order, fold, multiplications

SIZES = st.integers(1, 7)


@st.composite
def folds(draw: st.DrawFn) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    shape = draw(st.lists(SIZES, min_size=1, max_size=4))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=3, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    matrices = {axis: torch.randn(draw(SIZES), shape[axis], generator=generator, dtype=torch.float64) for axis in axes}
    return torch.randn(*shape, generator=generator, dtype=torch.float64), matrices


def product(tensor: torch.Tensor, maps: dict[int, torch.Tensor]) -> torch.Tensor:
    letters = "abcd"[: tensor.ndim]
    operands = [letters, *(letters[axis].upper() + letters[axis] for axis in maps)]
    result = "".join(letter.upper() if at in maps else letter for at, letter in enumerate(letters))
    return torch.einsum(f"{','.join(operands)}->{result}", tensor, *maps.values())


@settings(deadline=None, max_examples=60)
@given(folds())
def test_a_fold_and_its_gradients_are_those_of_the_product(case: tuple[torch.Tensor, dict[int, torch.Tensor]]) -> None:
    tensor, maps = case
    leaves = [tensor.requires_grad_(), *(matrix.requires_grad_() for matrix in maps.values())]
    weights = torch.randn_like(product(tensor, maps))
    results = []
    for function in (fold, product):
        result = function(tensor, maps)
        results.append([result, *torch.autograd.grad((result * weights).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_a_fold_takes_the_order_with_fewest_multiplications() -> None:
    # Columns first: 3072 * 768 * 192 twice; rows first: 768 * 3072 * 768 + 768 * 768 * 192.
    assert cheapest_order((3072, 768), {0: 768, 1: 192}) == (1, 0)
    assert multiplications((3072, 768), {0: 768, 1: 192}, (1, 0)) == 2 * 3072 * 768 * 192
    assert multiplications((3072, 768), {0: 768, 1: 192}, (0, 1)) == 768 * 3072 * 768 + 768 * 768 * 192
    assert cheapest_order((768, 3072), {0: 192, 1: 768}) == (0, 1)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fold_keeps_only_what_it_was_given(frozen: bool) -> None:
    weight = torch.randn(12, 8).requires_grad_(not frozen)
    maps = {0: torch.randn(6, 12, requires_grad=True), 1: torch.randn(4, 8, requires_grad=True)}
    given_storages = {tensor.data_ptr() for tensor in (weight, *maps.values())}
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = fold(weight, maps)
    assert kept
    assert set(kept) <= given_storages
    result.sum().backward()
    assert (weight.grad is None) == frozen


def test_a_half_precision_teacher_is_folded_in_the_precision_of_its_compactors() -> None:
    weight = torch.randn(12, 8).bfloat16().requires_grad_()
    maps = {0: torch.randn(6, 12, requires_grad=True), 1: torch.randn(4, 8, requires_grad=True)}
    result = fold(weight, maps)
    assert result.dtype == torch.float32
    assert torch.allclose(result, maps[0] @ weight.float() @ maps[1].T, atol=1e-5)
    result.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what dynamo does itself
def test_a_compiled_fold_has_no_graph_break() -> None:
    weight, maps = torch.randn(12, 8), {0: torch.randn(6, 12, requires_grad=True), 1: torch.randn(4, 8)}
    explained: Any = torch._dynamo.explain(fold)(weight, maps)
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1
