"""How fast a model is: seconds per forward.

Takes a model and a batch; gives a median. Called by `compress`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor, nn

from ...progress_bar import progress_bar
from ...scores.eval_mode import eval_mode

WARM_UP = 2


def latency(model: nn.Module, batch: Mapping[str, Tensor], repeats: int = 10) -> float:
    """Median seconds of `repeats` forwards `model(**batch)` in eval mode, after a warm-up of two."""
    seconds = []
    with eval_mode(model) as device:
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        for _ in progress_bar(range(WARM_UP + repeats), "Timing"):
            start = time.perf_counter()
            model(**inputs)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])
