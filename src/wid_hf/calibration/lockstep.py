"""Many forwards that advance together and stop wherever a weight is read.

Takes models and batches; gives, read by read in the order of the forward, the tensors that all forwards read
there. Nothing is run twice and nothing is stored but what each paused forward holds. Called by `survey` (the
teacher alone) and `lifts` (teacher and student side by side).
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NoReturn
from weakref import ref

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..coupling.plan import Plan
from ..coupling.weight_inputs import WHOLE, contraction
from ..errors import DataError
from .padding import Padding

Batch = Mapping[str, Any]
DECODER_INPUTS = {"decoder_input_ids", "decoder_inputs_embeds"}


@dataclass(frozen=True)
class Stop:
    """A forward paused before its read number `at` of the plan; `tensor` has `axis` contracted there."""

    at: int
    tensor: Tensor
    axis: int


@dataclass(frozen=True)
class Precision:
    """The autocast that calibration was called in: forwards keep it, statistics and solutions do without."""

    device: str
    enabled: bool
    dtype: torch.dtype | None

    @classmethod
    def of_caller(cls, device: torch.device) -> Precision:
        """Return what is on now, in this thread."""
        kind = device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return cls(kind, False, None)
        return cls(kind, True, torch.get_autocast_dtype(kind))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which a forward runs as the caller's would."""
        # Without its cache of cast weights: all threads share that one, so that only the first would see a weight cast.
        return torch.autocast(self.device, self.dtype, cache_enabled=False) if self.enabled else nullcontext()

    def full(self) -> AbstractContextManager[Any]:
        """Return a context for statistics."""
        return torch.autocast(self.device, enabled=False) if self.enabled else nullcontext()


class _Closed(BaseException):
    """Ends a forward that nobody waits for; no `except Exception` in a model can hold it up."""


class Forward:
    """One forward of a model in a thread of its own, which runs only while `advance` waits for it.

    Grad mode, autocast and dispatch modes belong to a thread; all else about the forward is as if it were called.

    Args:
        model: whose forward it is.
        batch: keyword arguments of the forward, as `prepared` makes them.
        plan: knows the reads.
        stops: numbers of the reads before which it pauses.
        precision: autocast of the forward.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, plan: Plan, stops: Collection[int], precision: Precision
    ) -> None:
        self._batch = batch
        self._padding = Padding(batch)
        self._precision = precision
        self._model = model
        self._reader = _Reader(plan, stops, self._pause)
        # No semaphores: those of `threading` are Python, and a Ctrl-C in the middle of one loses a wake-up for good.
        self._go: SimpleQueue[None] = SimpleQueue()
        self._arrived: SimpleQueue[None] = SimpleQueue()
        self._here: Stop | None = None
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="wid_hf calibration")

    def advance(self) -> Stop | None:
        """Run to the next stop and return it, or None at the end.

        Raises:
            DataError: the model's forward raised on this batch.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._go.put(None)
        self._arrived.get()
        if self._error is not None:
            refuse_batch(self._model, self._batch, self._error)
        return self._here

    def close(self) -> None:
        """End the forward where it stands."""
        self._closing = True
        self._go.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def watch(self, weight: str, fold: nn.Module) -> Callable[[], None]:
        """Know what `fold` returns in this forward as `weight`; call the result to stop that."""

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            if threading.current_thread() is self._thread:
                self._reader.name(out, weight)

        return fold.register_forward_hook(hook).remove

    def know(self, weight: str, tensor: Tensor) -> None:
        """Know `tensor` as `weight`."""
        self._reader.name(tensor, weight)

    def replace(self, weight: str, value: Tensor) -> None:
        """Give the next operation `value` as `weight`, even though the model has taken hold of the old one."""
        old = self._reader.latest.get(weight, lambda: None)()
        if old is not None:
            old.copy_(value)

    def rows(self, stop: Stop) -> Tensor:
        """Return what is read as `(positions, indices)`, positions of padding left out."""
        return self._padding.rows(stop.tensor.movedim(stop.axis, -1))

    def _run(self) -> None:
        self._go.get()
        try:
            if not self._closing:
                with torch.no_grad(), self._precision.autocast(), self._reader:
                    # Past `__call__`: hooks on the whole model are for whole forwards that run one at a time.
                    self._model.forward(**self._batch)
        except _Closed:
            pass
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        finally:
            self._here = None
            self._arrived.put(None)

    def _pause(self, stop: Stop) -> None:
        self._here = stop
        self._arrived.put(None)
        self._go.get()
        if self._closing:
            raise _Closed


class _Reader(TorchDispatchMode):
    """Knows weights among the operands of products, and pauses before the reads that are asked for."""

    def __init__(self, plan: Plan, stops: Collection[int], pause: Callable[[Stop], None]) -> None:
        super().__init__()
        self.latest: dict[str, ref[Tensor]] = {}
        self._names = WeakIdKeyDictionary()
        self._times_read: Counter[str] = Counter()
        self._reads: dict[str, list[int]] = defaultdict(list)
        self._stops = frozenset(stops)
        self._pause = pause
        for at, read in enumerate(plan.weight_inputs):
            self._reads[read.weight].append(at)

    def name(self, tensor: Tensor, weight: str) -> None:
        """Know `tensor` as `weight`."""
        self._names[tensor] = weight
        self.latest[weight] = ref(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if (stop := self._stop(func, args)) is not None:
            self._pause(stop)
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in WHOLE and args[0] in self._names and out.numel() == args[0].numel():
            self._names[out] = self._names[args[0]]
        return out

    def _stop(self, func: OpOverload, args: Sequence[Any]) -> Stop | None:
        if (product := contraction(func, args)) is None:
            return None
        for (tensor, axis), (weight, _) in (product.operands, product.operands[::-1]):
            if (name := self._names.get(weight)) is None or tensor in self._names:
                continue
            times = self._times_read[name]
            self._times_read[name] += 1
            if times < len(self._reads[name]) and (at := self._reads[name][times]) in self._stops:
                return Stop(at, tensor, axis)
        return None


def walk(forwards: Sequence[Forward], stops: Collection[int]) -> Iterator[tuple[int, list[Stop | None]]]:
    """Yield each read that some forward makes, and where every forward stands: None for one that does not make it.

    The reads come in the plan's order, each once all forwards that make it have reached it. After the last of `stops`,
    when the caller stops asking or when anything is raised, all forwards are ended where they stand.
    """
    left = set(stops)
    with ExitStack() as stack:
        for forward in forwards:
            stack.callback(forward.close)
        here = [forward.advance() for forward in forwards]
        while any(here):
            at = min(stop.at for stop in here if stop is not None)
            present = [stop if stop is not None and stop.at == at else None for stop in here]
            yield at, present
            left.discard(at)
            if not left:
                return
            # Forwards that stand elsewhere stay; a read that came earlier in another order is not waited for.
            for index, stop in enumerate(present):
                if stop is not None:
                    here[index] = forwards[index].advance()


def refuse_batch(model: nn.Module, batch: Batch, error: BaseException) -> NoReturn:
    """Raise what a forward raised, as a refusal of its batch where the batch may be at fault.

    Raises:
        DataError: names the arguments of the batch.
    """
    if not isinstance(error, Exception) or isinstance(error, torch.OutOfMemoryError):
        raise error
    raise DataError(
        f"{type(model).__name__}.forward does not take a batch of the calibration data, with arguments "
        f"{', '.join(batch) or 'none'} ({type(error).__name__}: {error}). A batch is a dictionary of keyword arguments."
    ) from error


def prepared(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return `batch` for one forward: on the model's device, without labels where they are not needed, never caching.

    A sequence-to-sequence model keeps its labels where it is given nothing else for its decoder: it shifts them itself.
    """
    device = next(model.parameters()).device
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    accepted = inspect.signature(model.forward).parameters
    if DECODER_INPUTS & given.keys() or "labels" not in accepted or not DECODER_INPUTS & accepted.keys():
        labels = given.pop("labels", None)
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if labels is not None and shift is not None and "labels" not in accepted and not DECODER_INPUTS & given.keys():
            given["decoder_input_ids"] = shift(labels=labels)
    if "use_cache" in accepted:
        given.setdefault("use_cache", False)
    return given
