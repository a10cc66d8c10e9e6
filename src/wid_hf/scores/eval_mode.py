"""The state in which every model is measured: no dropout, no gradients, and back again.

Takes any module; gives a context whose value is the module's device. Called by the other
modules of this package.
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
