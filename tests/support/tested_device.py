"""The device that tests of devices run on: the simulated one, or the real one that WID_HF_TEST_DEVICE names."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import simulated_device
import torch

NAME = os.environ.get("WID_HF_TEST_DEVICE", simulated_device.NAME)
TYPE = NAME.partition(":")[0]
SIMULATED = NAME == simulated_device.NAME
SYNCHRONIZES = "called a synchronizing"  # how torch begins what it says of CUDA


def without_float64() -> AbstractContextManager[None]:
    """Refuse tensors of float64, as MPS does, on the simulated device; a real one is as it is."""
    return simulated_device.without_float64() if SIMULATED else nullcontext()


def counted() -> AbstractContextManager[Counter[str]]:
    """Count what Python waits for; read it afterwards. Of CUDA by torch's own warnings; nothing of other real devices.

    Copies from the CPU and indices on it are counted on the simulated device only.
    """
    return simulated_device.counted() if SIMULATED else _counted_by_warnings()


@contextmanager
def stock_arithmetic() -> Iterator[None]:
    """Let convolutions of a real device have the float32 of the CPU: cuDNN would round what it multiplies to TF32."""
    if SIMULATED:
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _counted_by_warnings() -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()
    if TYPE != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found["sync: CUDA"] = sum(SYNCHRONIZES in str(each.message) for each in told)
