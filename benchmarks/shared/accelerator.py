"""The device that benchmarks run on."""

from __future__ import annotations

import torch


def chosen_device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
