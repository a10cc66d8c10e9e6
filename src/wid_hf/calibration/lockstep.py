"""Forwards of several models on several batches that advance together and stop at inputs of weights.

Takes models and batches; gives, in the order of the forward, the tensors that all forwards are about to contract with
one weight. No forward runs twice, and nothing is stored but what each paused forward holds. How a forward is paused is
told in `forward_thread` and known here only.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ..coupling.plan import Plan
from ..coupling.trace import quiet_forward
from .batches import Batch, prepared
from .forward_thread import ForwardThread, Operand
from .precision import Precision

Operands = Sequence[Operand | None]
"""What each batch's forward of one model contracts with the weight; None for a forward that does not reach it."""


@dataclass(frozen=True, eq=False)
class Watched:
    """A model and its weights by the plan's names: tensors, or modules that return the weight when it is used."""

    model: nn.Module
    weights: Mapping[str, Tensor] | Mapping[str, nn.Module]


class Lockstep:
    """One forward per model and batch, all of which stop at the same inputs of weights.

    A context manager and, inside, an iterator of `(at, operands)`: the number of the weight input in the plan, and the
    `Operands` of each model. Weight inputs come in the plan's order, each once all forwards that reach it are there.
    What is done to operands and weights before the next step is what the forwards go on with. At the end, and when
    anything is raised, all forwards are ended where they stand.

    Args:
        models: run in evaluation mode, without gradients.
        batches: keyword arguments of the forwards.
        plan: has the weight inputs.
        stops: numbers of the weight inputs to stop at; after the last one no forward goes on.
        precision: of the forwards.

    Raises:
        DataError: the forward of a model raised on a batch.
    """

    def __init__(
        self,
        models: Sequence[Watched],
        batches: Sequence[Batch],
        plan: Plan,
        stops: Collection[int],
        precision: Precision,
    ) -> None:
        self._models = models
        self._batches = batches
        self._plan = plan
        self._stops = frozenset(stops)
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
            self._forwards = [(each, self._forward(each, batch)) for each in self._models for batch in self._batches]
            for _, forward in self._forwards:
                ends.callback(forward.close)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.close()

    def __iter__(self) -> Iterator[tuple[int, list[Operands]]]:
        left = set(self._stops)
        here = [forward.advance() for _, forward in self._forwards]
        while left and any(here):
            at = min(operand.at for operand in here if operand is not None)
            present = [operand if operand is not None and operand.at == at else None for operand in here]
            yield at, self._by_model(present)
            left.discard(at)
            if left:
                here = self._advanced(here, present)

    def replace(self, model: Watched, name: str, value: Tensor) -> None:
        """Let the forwards of a model go on with `value` as a weight, though they hold the old one already."""
        for owner, forward in self._forwards:
            if owner is model:
                forward.replace(name, value)

    def _advanced(self, here: Operands, present: Operands) -> list[Operand | None]:
        """Let the forwards that are present at this step go on, and return where all of them are now.

        Those that wait elsewhere stay; an input that comes earlier in another order is not waited for.
        """
        return [
            forward.advance() if there is not None else waiting
            for (_, forward), there, waiting in zip(self._forwards, present, here, strict=True)
        ]

    def _forward(self, watched: Watched, batch: Batch) -> ForwardThread:
        given = prepared(watched.model, batch)
        forward = ForwardThread(watched.model, given, self._plan.weight_inputs, self._stops, self._precision)
        for name, weight in watched.weights.items():
            if isinstance(weight, Tensor):
                forward.know(name, weight)
        return forward

    def _by_model(self, operands: Operands) -> list[Operands]:
        count = len(self._batches)
        return [operands[at : at + count] for at in range(0, len(operands), count)]


class _Made:
    """A forward hook by which the forward in whose thread it runs knows the weight that was made."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, module: nn.Module, args: Any, made: Tensor) -> None:
        forward = threading.current_thread()
        if isinstance(forward, ForwardThread):
            forward.know(self._name, made)


def are_same(before: Sequence[Operand | None], now: Sequence[Operand | None]) -> bool:
    """Return whether all forwards contract again what they contracted before, as for queries, keys and values.

    The operands of before must still be held, so that their memory is not another tensor's by now.
    """
    return [operand and operand.identity for operand in before] == [operand and operand.identity for operand in now]
