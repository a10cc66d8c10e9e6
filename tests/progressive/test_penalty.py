"""Pulling dropped rows to zero: exact, whatever the optimizer; and the reference arithmetic on Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Adafactor

from wid_hf import ConfigError
from wid_hf.progressive.penalty import fade, pull_by_moments

DROPPED = torch.tensor([False, True, False, True])


def matrix(seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))


def test_fading_multiplies_rows_and_touches_no_others() -> None:
    weight = matrix()
    before = weight.detach().clone()
    fade(weight, torch.tensor([1.0, 0.5, 1.0, 0.0], dtype=torch.float64))
    assert torch.equal(weight[[0, 2]], before[[0, 2]])
    assert torch.equal(weight[1], before[1] * 0.5)
    assert torch.equal(weight[3], torch.zeros(4))


def test_fading_to_zero_is_zero_for_a_row_that_overflowed() -> None:
    weight = matrix()
    weight.data[1] = float("inf")
    fade(weight, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert torch.equal(weight[1], torch.zeros(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False),
    ],
    ids=["adamw", "fused adamw", "sgd", "adafactor"],
)
def test_rows_reach_exactly_zero_with_every_optimizer(make: Any) -> None:
    weight = matrix()
    optimizer = make([weight])
    for age in range(1, 6):
        (weight * matrix(age).detach()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        left = torch.where(DROPPED, (5 - age) / (6 - age), 1.0)
        fade(weight, left)
    assert torch.equal(weight[DROPPED], torch.zeros(2, 4))
    assert (weight[~DROPPED] != 0).all()


def adamw_by_hand(value: Tensor, gradients: list[Tensor], dropped: Tensor, strength: float) -> Tensor:
    """AdamW in float64 whose dropped rows see `strength * value` in the first moment, `value` in the second."""
    rate, one, two, eps, decay = 1e-2, 0.9, 0.999, 1e-8, 0.01
    value = value.double()
    first = second = torch.zeros_like(value)
    for step, gradient in enumerate(gradients, start=1):
        seen = torch.where(dropped[:, None], value, gradient.double())
        pulled = seen if step == 1 else torch.where(dropped[:, None], strength * value, gradient.double())
        value = value * (1 - rate * decay)
        first = one * first + (1 - one) * pulled
        second = two * second + (1 - two) * seen**2
        value = value - rate * (first / (1 - one**step)) / ((second / (1 - two**step)).sqrt() + eps)
    return value


def test_the_reference_arithmetic_equals_a_calculation_by_hand_in_float64() -> None:
    weight = matrix()
    gradients = [matrix(seed).detach() for seed in (1, 2, 3)]
    expected = adamw_by_hand(weight.detach(), gradients, DROPPED, strength=20.0)
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.01)
    for gradient in gradients:
        weight.grad = gradient.clone()
        pull_by_moments(optimizer, [(weight, DROPPED.nonzero()[:, 0])], strength=20.0)
        optimizer.step()
    assert torch.allclose(weight.double(), expected, atol=1e-6)
    plain = adamw_by_hand(matrix().detach(), gradients, DROPPED, strength=1.0)
    assert (expected - plain)[DROPPED].abs().min() > 1e-3


def test_an_optimizer_without_a_first_moment_is_refused_by_name() -> None:
    weight = matrix()
    optimizer = torch.optim.SGD([weight], lr=1e-2)
    weight.grad = torch.ones(4, 4)
    with pytest.raises(ConfigError, match=r"adam_moment.*SGD does not have.*decoupled"):
        pull_by_moments(optimizer, [(weight, DROPPED.nonzero()[:, 0])], strength=20.0)
