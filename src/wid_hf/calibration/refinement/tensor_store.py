"""Trees of tensors that are set aside: in memory up to a limit, above it in files of a temporary folder.

Takes what a layer is called with or returns; gives it back on the device where it is needed. Called by `streams`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


class TensorStore:
    """A context manager; at its end all files are gone.

    Args:
        limit: bytes that may be in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_memory = 0
        self._files = 0
        self._folder: Path | None = None
        self._ends = ExitStack()

    def __enter__(self) -> TensorStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.close()

    def put(self, tree: Any) -> Stored:
        """Set a tree aside until the result is garbage."""
        leaves, spec = tree_flatten(tree)
        tensors = {at: leaf.detach().cpu() for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        others = [None if at in tensors else leaf for at, leaf in enumerate(leaves)]
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._in_memory + size <= self._limit:
            stored = Stored(spec, others, tensors)
            self._in_memory += size
            weakref.finalize(stored, self._forget, size)
            return stored
        path = self._path()
        whole = {str(at): tensor.clone(memory_format=torch.contiguous_format) for at, tensor in tensors.items()}
        save_file(whole, path)
        stored = Stored(spec, others, path)
        weakref.finalize(stored, path.unlink, missing_ok=True)
        return stored

    def _forget(self, size: int) -> None:
        self._in_memory -= size

    def _path(self) -> Path:
        if self._folder is None:
            self._folder = Path(self._ends.enter_context(TemporaryDirectory(prefix="wid_hf-refinement-")))
        self._files += 1
        return self._folder / f"{self._files}.safetensors"


class Stored:
    """A tree that was set aside."""

    def __init__(self, spec: TreeSpec, others: Sequence[Any], tensors: dict[int, Tensor] | Path) -> None:
        self._spec, self._others, self._tensors = spec, others, tensors

    def get(self, device: torch.device) -> Any:
        """Return a copy of the tree on `device`: a layer may write into what it is called with."""
        if isinstance(self._tensors, Path):
            found = {int(at): tensor.to(device) for at, tensor in load_file(self._tensors).items()}
        else:
            found = {at: tensor.to(device, copy=True) for at, tensor in self._tensors.items()}
        return tree_unflatten([found.get(at, other) for at, other in enumerate(self._others)], self._spec)
