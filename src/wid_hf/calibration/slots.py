"""A temporary file whose pieces hold bytes that are read back soon: many small ones, written again and again.

Takes contents of tensors, gives slots. Used by `activations`.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A piece of the file: its first byte and how many."""

    start: int
    size: int


class SlotFile:
    """A context manager; at its end the file is gone. It is made when it is needed first."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._end = 0
        self._free: dict[int, list[Slot]] = defaultdict(list)  # by size

    def __enter__(self) -> SlotFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def put(self, contents: Tensor) -> Slot:
        """Write bytes `(n,)` and return where."""
        size = len(contents)
        if self._free[size]:
            slot = self._free[size].pop()
        else:
            slot = Slot(self._end, size)
            self._end += size
        self.write(slot, contents)
        return slot

    def write(self, slot: Slot, contents: Tensor) -> None:
        """Write bytes `(n,)` into a slot."""
        contents = contents.cpu()
        left, at = _view(contents), slot.start
        while left:
            done = os.pwrite(self._descriptor(), left, at)
            left, at = left[done:], at + done

    def read(self, slot: Slot, into: Tensor) -> None:
        """Read a slot into bytes `(n,)`."""
        target = into if into.device.type == "cpu" else torch.empty(slot.size, dtype=torch.uint8)
        left, at = _view(target), slot.start
        while left:
            done = os.preadv(self._descriptor(), [left], at)
            left, at = left[done:], at + done
        if target is not into:
            into.copy_(target)

    def free(self, slot: Slot) -> None:
        """Let others have a slot."""
        self._free[slot.size].append(slot)

    def _descriptor(self) -> int:
        if self._file is None:
            self._file, path = tempfile.mkstemp(prefix="wid_hf-calibration-")
            Path(path).unlink()
        return self._file


def _view(contents: Tensor) -> memoryview:
    """Return the memory of bytes; `Tensor.numpy` would not do, since a storage that numpy knows cannot be resized."""
    return memoryview((ctypes.c_char * len(contents)).from_address(contents.data_ptr())).cast("B")


def give_back_memory() -> None:
    """Let the C library return to the system what is free in it: it keeps pieces of activations otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
