"""A forward that can be paused in the middle, at landmarks.

Python leaves a call into a model's code only when it returns. So each forward runs in a separate thread, exactly one at
a time, and waits inside a dispatch mode. Used by `lockstep` only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..coupling.landmark_record import Landmark
from ..coupling.landmarks import Key, LandmarkFinder, Sighting
from ..coupling.weight_inputs import WHOLE
from .activations import Activations
from .batches import Batch, refuse_batch
from .padding import Padding
from .precision import Precision


@dataclass(frozen=True)
class Operand:
    """The tensor at a landmark where a forward is paused.

    What `tensor` and `rows` return holds until an operand of another batch is looked at: its memory may then be needed.

    Attributes:
        at: the landmark.
        held: the tensor, whose memory may have been set aside.
        axis: its axis that is contracted, scaled or made of outputs.
        padding: of the forward's batch.
        activations: of the forward's batch.
    """

    at: Landmark
    held: Tensor
    axis: int
    padding: Padding
    activations: Activations

    @property
    def tensor(self) -> Tensor:
        """What is about to be contracted with a weight, or what was just scaled or summed."""
        self.activations.use()
        return self.held

    @property
    def size(self) -> int:
        """How many indices the axis has."""
        return self.held.shape[self.axis]

    @property
    def rows(self) -> Tensor:
        """The tensor as `(positions, indices)`, without positions of padding."""
        return self.padding.rows(self.tensor.movedim(self.axis, -1))

    @property
    def positions(self) -> tuple[int, int]:
        """How many positions the tensor has, and how many of them are rows."""
        shape = [*self.held.shape[: self.axis], *self.held.shape[self.axis + 1 :], self.size]
        tensor = torch.empty(shape, device="meta")  # only the shape counts
        everything = tensor.numel() // max(tensor.shape[-1], 1)
        attended = self.padding.attended(tensor)
        return everything, everything if attended is None else int(attended.sum())

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two operands of the same values in the same memory, as long as both exist."""
        tensor = self.held
        place = tensor.untyped_storage()._cdata, tensor.storage_offset()
        return *place, tensor.shape, tensor.stride(), tensor.dtype, tensor._version, self.axis

    def scale_(self, factors: Tensor) -> None:
        """Multiply the tensor in place by one factor per index of the contracted axis `(n,)`."""
        tensor = self.tensor
        tensor.mul_(factors.to(tensor).view([-1] + [1] * (tensor.ndim - 1 - self.axis)))


class _Closed(BaseException):
    """Ends a forward whose results are not needed; an `except Exception` in a model does not catch it."""


class ForwardThread(threading.Thread):
    """One forward of a model, which runs only while `advance` waits for it.

    Grad mode, autocast and dispatch modes belong to a thread; in all else the forward is like a plain call.

    Args:
        model: whose forward it is.
        batch: keyword arguments of the forward, as `prepared` makes them.
        stops: the landmarks at which it pauses, by their keys.
        precision: autocast of the forward.
        activations: of all forwards of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        stops: Mapping[Key, Landmark],
        precision: Precision,
        activations: Activations,
    ) -> None:
        super().__init__(daemon=True, name="wid_hf calibration")
        self._model = model
        self._batch = batch
        self._padding = Padding(batch)
        self._precision = precision
        self._activations = activations
        self._mode = _LandmarkMode(stops, self._pause, activations)
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
        self._here = None
        self._activations.use()
        self._go.put(None)
        self._arrived.get()
        self._activations.count()
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

    def _pause(self, at: Landmark, seen: Sighting) -> None:
        self._here = Operand(at, seen.tensor, seen.axis, self._padding, self._activations)
        self._arrived.put(None)
        self._go.get()
        if self._closing:
            raise _Closed


class _LandmarkMode(TorchDispatchMode):
    """Recognises weights among the operands of operations, and pauses at the given landmarks."""

    def __init__(
        self, stops: Mapping[Key, Landmark], pause: Callable[[Landmark, Sighting], None], activations: Activations
    ) -> None:
        super().__init__()
        self._activations = activations
        self.latest: dict[str, ref[Tensor]] = {}
        self._names = WeakIdKeyDictionary()
        self._finder = LandmarkFinder(self._names)
        self._stops = stops
        self._pause = pause

    def set_weight(self, weight: str, tensor: Tensor) -> None:
        """Recognise `tensor` as the weight of that name from now on."""
        self._activations.leave_out(tensor)
        self._names[tensor] = weight
        self.latest[weight] = ref(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._stop(self._finder.before(func, args))
        self._activations.before(func, args, kwargs)
        out = func(*args, **kwargs)
        self._activations.after(args, kwargs, out)
        if func.overloadpacket in WHOLE and args[0] in self._names and out.numel() == args[0].numel():
            self._names[out] = self._names[args[0]]
        self._stop(self._finder.after(func, args, out))
        return out

    def _stop(self, seen: Sighting | None) -> None:
        if seen is not None and (at := self._stops.get(seen.key)) is not None:
            self._pause(at, seen)
