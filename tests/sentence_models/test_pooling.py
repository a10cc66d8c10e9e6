"""Vectors of texts from the states of their tokens."""

from __future__ import annotations

import pytest
import torch

from wid_hf.sentence_models.pooling import KEYS, LINEAR, POOLINGS, mean_pool


def test_mean_pool_averages_only_attended_positions() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 7.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(mean_pool(states, mask), torch.tensor([[2.0, 4.0], [5.0, 7.0]]))


def test_mean_pool_of_half_precision_is_accumulated_in_float32() -> None:
    pooled = mean_pool(torch.full((1, 4096, 1), 60000.0, dtype=torch.float16), torch.ones(1, 4096))
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(60000.0, rel=1e-3)


def test_mean_pool_of_a_row_without_attention_is_zero() -> None:
    assert torch.equal(mean_pool(torch.randn(1, 3, 2), torch.zeros(1, 3)), torch.zeros(1, 2))


STATES = torch.tensor([[[1.0, -2.0], [3.0, 6.0], [5.0, 1.0]]])  # one text of three tokens
FORMULAS = {
    "cls": [1.0, -2.0],
    "max": [5.0, 6.0],
    "mean": [3.0, 5 / 3],
    "mean_sqrt_len_tokens": [9 / 3**0.5, 5 / 3**0.5],
    "weightedmean": [(1 * 1 + 2 * 3 + 3 * 5) / 6, (1 * -2 + 2 * 6 + 3 * 1) / 6],
    "lasttoken": [5.0, 1.0],
}


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_each_mode_follows_its_formula_whatever_stands_in_the_padding(mode: str, side: str) -> None:
    noise = torch.full((1, 2, 2), 99.0)
    right = side == "right"
    states = torch.cat([STATES, noise] if right else [noise, STATES], dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0] if right else [0, 0, 1, 1, 1]])
    expected = FORMULAS[mode]
    if mode == "weightedmean" and not right:  # positions count from the left of the batch
        expected = [(3 * 1 + 4 * 3 + 5 * 5) / 12, (3 * -2 + 4 * 6 + 5 * 1) / 12]
    torch.testing.assert_close(POOLINGS[mode](states, mask), torch.tensor([expected]))


def test_both_layouts_name_the_same_modes() -> None:
    assert list(KEYS.values()) == list(POOLINGS)
    assert set(POOLINGS) - {"max"} == LINEAR


@pytest.mark.parametrize("mode", POOLINGS)
def test_only_a_maximum_does_not_turn_with_its_states(mode: str) -> None:
    states, mask = torch.randn(3, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    turned = torch.linalg.qr(torch.randn(6, 6)).Q
    same = torch.allclose(POOLINGS[mode](states @ turned, mask), POOLINGS[mode](states, mask) @ turned, atol=1e-5)
    assert same == (mode in LINEAR)
