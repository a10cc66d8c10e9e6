"""Forwards of several models on several batches that advance together and stop at landmarks.

Takes models and batches; gives, in the order of the forward, the tensors of all forwards at one landmark. No forward
runs twice. The only activations are those that paused forwards still need, and they are in memory up to a limit.
`forward_thread` pauses a forward; no other module uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ..coupling.landmark_record import Landmark
from ..coupling.plan import Plan
from ..coupling.trace import quiet_forward
from .activations import ActivationPool, Activations
from .batches import Batch, prepared
from .forward_thread import ForwardThread, Operand
from .precision import Precision
from .slots import SlotFile

LEAST = 64 << 20  # bytes of activations in memory: of a small model files would save nothing that counts

Operands = Sequence[Operand | None]
"""For each batch the operand in one model's forward; None for a forward that does not reach the landmark."""


@dataclass(frozen=True, eq=False)
class Watched:
    """A model, and its weights by name in the plan: tensors, or modules whose output is the weight."""

    model: nn.Module
    weights: Mapping[str, Tensor] | Mapping[str, nn.Module]


class Lockstep:
    """One forward per model and batch, all of which stop at the same landmarks.

    A context manager and, inside, an iterator of `(at, operands)`: the landmark, and the `Operands` of each model.
    Landmarks come in their order, each when all forwards that reach it are there.
    Changes to operands and weights before the next step take effect in the forwards. At the end, and after any error,
    all forwards are ended at their current stops.

    Args:
        models: run in evaluation mode, without gradients.
        batches: keyword arguments of the forwards.
        plan: has the landmarks.
        stops: those to stop at; after the last one no forward continues.
        precision: of the forwards.
        in_memory: bytes of activations that may be in memory beside those of one batch; the others lie in temporary
            files. By default as many as the second moments of the widest weight input take, and 64 MiB at least.

    Raises:
        DataError: the forward of a model raised on a batch.
    """

    def __init__(
        self,
        models: Sequence[Watched],
        batches: Sequence[Batch],
        plan: Plan,
        stops: Collection[Landmark],
        precision: Precision,
        in_memory: int | None = None,
    ) -> None:
        self._in_memory = max(LEAST, _size_of_moments(plan)) if in_memory is None else in_memory
        self._models = models
        self._batches = batches
        wanted = frozenset(stops)
        self._stops = {key: place for key, place in plan.landmarks.places.items() if place in wanted}
        self._precision = precision
        self._forwards: list[tuple[Watched, ForwardThread]] = []
        self._ends = ExitStack()

    def __enter__(self) -> Lockstep:
        with ExitStack() as ends:
            for watched in self._models:
                ends.enter_context(quiet_forward(watched.model))
                for name, weight in watched.weights.items():
                    if isinstance(weight, nn.Module):
                        ends.callback(weight.register_forward_hook(_Made(name)).remove)
            pool = ActivationPool(self._in_memory, ends.enter_context(SlotFile()))
            activations = [Activations(pool) for _ in self._batches]
            self._forwards = [
                (each, self._forward(each, batch, own))
                for each in self._models
                for batch, own in zip(self._batches, activations, strict=True)
            ]
            for _, forward in self._forwards:
                ends.callback(forward.close)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.close()

    def __iter__(self) -> Iterator[tuple[Landmark, list[Operands]]]:
        left = set(self._stops.values())
        here = [forward.advance() for _, forward in self._forwards]
        while left and any(here):
            at = min((operand.at for operand in here if operand is not None), key=lambda each: each.order)
            present = [operand if operand is not None and operand.at == at else None for operand in here]
            yield at, self._by_model(present)
            left.discard(at)
            if left:
                here = self._advanced(here, present)

    def replace(self, model: Watched, name: str, value: Tensor) -> None:
        """Let the forwards of a model continue with `value` as a weight, even those that already use the old one."""
        for owner, forward in self._forwards:
            if owner is model:
                forward.replace(name, value)

    def _advanced(self, here: Operands, present: Operands) -> list[Operand | None]:
        """Continue the forwards that are at this stop, and return where all of them are now.

        Forwards that wait at another stop stay there; a stop that a forward passed in another order is skipped.
        """
        return [
            forward.advance() if there is not None else waiting
            for (_, forward), there, waiting in zip(self._forwards, present, here, strict=True)
        ]

    def _forward(self, watched: Watched, batch: Batch, activations: Activations) -> ForwardThread:
        given = prepared(watched.model, batch)
        forward = ForwardThread(watched.model, given, self._stops, self._precision, activations)
        for name, weight in watched.weights.items():
            if isinstance(weight, Tensor):
                forward.set_weight(name, weight)
        return forward

    def _by_model(self, operands: Operands) -> list[Operands]:
        count = len(self._batches)
        return [operands[at : at + count] for at in range(0, len(operands), count)]


class _Made:
    """A forward hook that registers a folded weight with the forward in whose thread it runs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, module: nn.Module, args: Any, made: Tensor) -> None:
        forward = threading.current_thread()
        if isinstance(forward, ForwardThread):
            forward.set_weight(self._name, made)


def _size_of_moments(plan: Plan) -> int:
    """Return how many bytes the second moments of the widest weight input have in float64."""
    return 8 * max((plan.dim_of(each).size for each in plan.weight_inputs), default=0) ** 2


def are_same(before: Sequence[Operand | None], now: Sequence[Operand | None]) -> bool:
    """Return whether the operands of all forwards are the same as before, as for queries, keys and values.

    The earlier operands must still exist, so that their memory cannot belong to another tensor now.
    """
    return [operand and operand.identity for operand in before] == [operand and operand.identity for operand in now]
