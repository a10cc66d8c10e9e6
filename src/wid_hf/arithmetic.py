"""The arithmetic of a device: whether it has float64, and whether it rounds the products of float32.

Takes tensors and devices; imports no other part. Statistics are added up in float64, and proofs compare outputs, so
both need arithmetic that an accelerator may not have (MPS) or that a caller may have switched off (TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

NEWER = "fp32_precision"


def place_of(device: torch.device) -> torch.device:
    """Return the device for float64 statistics of tensors on `device`: the CPU, if that has no float64 (MPS)."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device if that has float64."""
    return tensor.to(place_of(tensor.device)).double()


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute products of float32 in float32 inside: no TF32 on CUDA, no bfloat16 on CPUs; then as it was before.

    With TF32 two ways to compute one thing differ by some 1e-4 of the largest number, as if they were two functions.
    """
    # Newer settings come after the older ones, which change them as well.
    settings = [*_older_settings(), *_newer_settings()]
    before = [setting.read() for setting in settings]
    try:
        for setting in settings:
            setting.write(setting.full)
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.write(value)


@dataclass(frozen=True)
class _Setting:
    """How torch rounds some products: read, write, and the value for no rounding below float32."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: Any


def _older_settings() -> list[_Setting]:
    """Return the settings of every torch, where they can be read: they cannot express all that newer ones can."""
    cudnn = torch.backends.cudnn
    settings = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _Setting(lambda: cudnn.allow_tf32, partial(setattr, cudnn, "allow_tf32"), False),
    ]
    return [setting for setting in settings if _can_be_read(setting)]


def _newer_settings() -> list[_Setting]:
    """Return the settings of torch 2.9 and later, one for each backend and kind of operation."""
    backends, kinds = (torch.backends.cudnn, torch.backends.mkldnn), ("matmul", "conv", "rnn")
    places = [torch.backends.cuda.matmul, *(getattr(each, kind, None) for each in backends for kind in kinds)]
    return [
        _Setting(partial(getattr, place, NEWER), partial(setattr, place, NEWER), "ieee")
        for place in places
        if hasattr(place, NEWER)
    ]


def _can_be_read(setting: _Setting) -> bool:
    try:
        setting.read()
    except RuntimeError:
        return False
    return True
