"""A forward that can be paused in the middle, before a tensor is contracted with a weight.

Python leaves a call into a model's code only when it returns. So each forward runs in a separate thread, exactly one at
a time, and waits inside a dispatch mode. Used by `lockstep` only.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..coupling.weight_inputs import WHOLE, WeightInput, contraction
from .batches import Batch, refuse_batch
from .padding import Padding
from .precision import Precision


@dataclass(frozen=True)
class Operand:
    """A tensor that a paused forward is about to contract with a weight.

    Attributes:
        at: number of the weight input in the plan.
        tensor: the tensor.
        axis: its axis that is contracted.
        padding: of the forward's batch.
    """

    at: int
    tensor: Tensor
    axis: int
    padding: Padding

    @property
    def rows(self) -> Tensor:
        """The tensor as `(positions, indices)`, without positions of padding."""
        return self.padding.rows(self.tensor.movedim(self.axis, -1))

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two operands of the same values in the same memory, as long as both exist."""
        tensor = self.tensor
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version, self.axis

    def scale_(self, factors: Tensor) -> None:
        """Multiply the tensor in place by one factor per index of the contracted axis `(n,)`."""
        self.tensor.mul_(factors.to(self.tensor).view([-1] + [1] * (self.tensor.ndim - 1 - self.axis)))


class _Closed(BaseException):
    """Ends a forward whose results are not needed; an `except Exception` in a model does not catch it."""


class ForwardThread(threading.Thread):
    """One forward of a model, which runs only while `advance` waits for it.

    Grad mode, autocast and dispatch modes belong to a thread; in all else the forward is like a plain call.

    Args:
        model: whose forward it is.
        batch: keyword arguments of the forward, as `prepared` makes them.
        weight_inputs: of the plan.
        stops: numbers of the weight inputs before which it pauses.
        precision: autocast of the forward.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        weight_inputs: Sequence[WeightInput],
        stops: Collection[int],
        precision: Precision,
    ) -> None:
        super().__init__(daemon=True, name="wid_hf calibration")
        self._model = model
        self._batch = batch
        self._padding = Padding(batch)
        self._precision = precision
        self._mode = _WeightInputMode(weight_inputs, stops, self._pause)
        # No semaphores: those of `threading` are Python code, and a Ctrl-C inside of it may lose a wake-up.
        self._go: SimpleQueue[None] = SimpleQueue()
        self._arrived: SimpleQueue[None] = SimpleQueue()
        self._here: Operand | None = None
        self._error: BaseException | None = None
        self._closing = False

    def advance(self) -> Operand | None:
        """Run to the next stop and return the operand there, or None at the end of the forward.

        Raises:
            DataError: the model's forward raised on this batch.
        """
        if self.ident is None:
            self.start()
        self._go.put(None)
        self._arrived.get()
        if self._error is not None:
            refuse_batch(self._model, self._batch, self._error)
        return self._here

    def close(self) -> None:
        """End the forward at its current stop."""
        self._closing = True
        self._go.put(None)
        if self.ident is not None:
            self.join()

    def set_weight(self, weight: str, tensor: Tensor) -> None:
        """Recognise `tensor` as the weight of that name from now on."""
        self._mode.set_weight(weight, tensor)

    def replace(self, weight: str, value: Tensor) -> None:
        """Use `value` as `weight` in the next operation: it is written into the tensor that the model already has."""
        old = self._mode.latest.get(weight, lambda: None)()
        if old is not None:
            old.copy_(value)

    def run(self) -> None:
        """Run the forward; called by `threading` when `advance` starts the thread."""
        self._go.get()
        try:
            if not self._closing:
                with torch.no_grad(), self._precision.autocast(), self._mode:
                    # Past `__call__`: hooks on the whole model are for whole forwards that run one at a time.
                    self._model.forward(**self._batch)
        except _Closed:
            pass
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        finally:
            self._here = None
            self._arrived.put(None)

    def _pause(self, at: int, tensor: Tensor, axis: int) -> None:
        self._here = Operand(at, tensor, axis, self._padding)
        self._arrived.put(None)
        self._go.get()
        if self._closing:
            raise _Closed


class _WeightInputMode(TorchDispatchMode):
    """Recognises weights among the operands of products, and pauses at the given weight inputs."""

    def __init__(
        self, weight_inputs: Sequence[WeightInput], stops: Collection[int], pause: Callable[[int, Tensor, int], None]
    ) -> None:
        super().__init__()
        self.latest: dict[str, ref[Tensor]] = {}
        self._names = WeakIdKeyDictionary()
        self._times_used: Counter[str] = Counter()
        self._uses: dict[str, list[int]] = defaultdict(list)
        self._stops = frozenset(stops)
        self._pause = pause
        for at, weight_input in enumerate(weight_inputs):
            self._uses[weight_input.weight].append(at)

    def set_weight(self, weight: str, tensor: Tensor) -> None:
        """Recognise `tensor` as the weight of that name from now on."""
        self._names[tensor] = weight
        self.latest[weight] = ref(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if (stop := self._stop(func, args)) is not None:
            self._pause(*stop)
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in WHOLE and args[0] in self._names and out.numel() == args[0].numel():
            self._names[out] = self._names[args[0]]
        return out

    def _stop(self, func: OpOverload, args: Sequence[Any]) -> tuple[int, Tensor, int] | None:
        """Return number, tensor and contracted axis if `func` is a weight input of the plan, else None."""
        if (product := contraction(func, args)) is None:
            return None
        for (tensor, axis), (weight, _) in (product.operands, product.operands[::-1]):
            if (name := self._names.get(weight)) is None or tensor in self._names:
                continue
            times = self._times_used[name]
            self._times_used[name] += 1
            if times < len(self._uses[name]) and (at := self._uses[name][times]) in self._stops:
                return at, tensor, axis
        return None
