"""The state in which every model is measured: no dropout, no gradients, a fast device, and back again.

Takes any module; gives contexts. Called by the other modules of this package, by objectives and tools.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into eval mode without gradients; afterwards the mode of each submodule is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def on_accelerator(model: nn.Module) -> Iterator[None]:
    """Let `model` run on the accelerator, if there is one; afterwards it is on the device of its first weight again."""
    before = next(model.parameters()).device
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    try:
        yield
    finally:
        model.to(before)
