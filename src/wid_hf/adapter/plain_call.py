"""A place to make models in, whatever context the caller is in.

Takes a device; gives a context. Used wherever the tuner makes or traces a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def as_if_called_plainly(device: torch.device) -> Iterator[None]:
    """Leave inference mode and autocast of the caller, if there are any.

    Tensors made in inference mode can never train, operations are traced by other names there, and outputs in half
    precision differ too much from each other to prove anything.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield
