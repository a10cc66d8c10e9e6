"""The numerical precision of calibration: forwards run in the caller's autocast, statistics outside of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """The autocast in which calibration was called.

    Attributes:
        device: type of the device, such as `cuda`.
        enabled: whether autocast is on.
        dtype: of the autocast; None if it is off.
    """

    device: str
    enabled: bool
    dtype: torch.dtype | None

    @classmethod
    def of_caller(cls, device: torch.device) -> Precision:
        """Return the autocast that is on now in this thread."""
        kind = device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return cls(kind, False, None)
        return cls(kind, True, torch.get_autocast_dtype(kind))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which a forward runs as the caller's would."""
        # Without its cache of cast weights: threads share it, so only the first one would see a weight being cast.
        return torch.autocast(self.device, self.dtype, cache_enabled=False) if self.enabled else nullcontext()

    def full(self) -> AbstractContextManager[Any]:
        """Return a context for statistics."""
        return torch.autocast(self.device, enabled=False) if self.enabled else nullcontext()
