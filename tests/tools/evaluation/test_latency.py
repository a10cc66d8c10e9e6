"""How long a forward takes: the median, after a warm-up, in evaluation mode."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from wid_hf.tools.evaluation import latency


class Slow(nn.Module):
    """Sleeps 40 ms in training mode, else the next of `seconds`; the first two are the warm-up."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seconds = iter(seconds)

    def forward(self, input_ids: Tensor) -> None:
        assert not torch.is_grad_enabled()
        time.sleep(0.04 if self.training else next(self.seconds))


def test_latency_is_the_median_in_eval_mode_after_the_warm_up() -> None:
    model = Slow([0.2, 0.2, 0.01, 0.2, 0.01]).train()
    assert 0.01 <= latency(model, {"input_ids": torch.zeros(1)}, repeats=3) < 0.035
    assert next(model.seconds, None) is None
    assert model.training
