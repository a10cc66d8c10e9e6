"""A context for making models, independent of the caller's context.

Takes a device; gives a context manager. Used wherever the tuner makes or traces a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def as_if_called_plainly(device: torch.device) -> Iterator[None]:
    """Switch the caller's inference mode and autocast off.

    Tensors made in inference mode can never train, operations have other names there when traced, and outputs in half
    precision are too inexact for proofs.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
