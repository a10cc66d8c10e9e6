"""How much memory a forward needs: its weights, and the activations that are alive at one time.

Takes a model and inputs; gives bytes. They are counted as tensors come and go, so that the number is the same on every
device. Called by `costs`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from .stock_models import forward


def peak_memory(model: PreTrainedModel, inputs: Mapping[str, Any]) -> int:
    """Return the bytes of the weights and buffers of `model`, of `inputs`, and of the most activations at one time."""
    held = [*model.parameters(), *model.buffers(), *(t for t in tree_leaves(dict(inputs)) if isinstance(t, Tensor))]
    alive = Alive(held)
    with alive:
        forward(model, inputs)
    return alive.most


class Alive(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive, and remembers the most.

    Args:
        held: tensors that exist already.

    Attributes:
        now: bytes.
        most: bytes at one time.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0
        self.add(held)

    def add(self, held: Iterable[Tensor]) -> int:
        """Note tensors that exist already; return the bytes of those that were not noted before."""
        before = self.now
        for tensor in held:
            self._note(tensor)
        return self.now - before

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and note the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._note(each)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
