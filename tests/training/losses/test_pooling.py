"""Means over the positions that are attended to."""

from __future__ import annotations

import pytest
import torch

from wid_hf.training.losses.pooling import mean_pool


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
