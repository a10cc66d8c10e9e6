"""What every layer of a model is called with and returns, layer by layer, for all pieces of the data.

Takes a model and pieces, gives trees of tensors that a `TensorStore` holds: of the layer at work and of the last one
before it, not of the whole depth. Called by `layer_by_layer` and `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...coupling.trace import output_tensors
from ..batches import Batch, prepared, refuse_batch
from ..precision import Precision
from .stand_ins import standing_in
from .tensor_store import Stored, TensorStore

CLOSE = 1e-3  # of the largest entry; other kernels round differently


class _Reached(BaseException):
    """Ends a forward at the layer that it was run for; an `except Exception` in a model does not catch it."""


class Streams:
    """One model's way through its layers.

    A layer's arguments come from the model's own forward, which ends there. Layers that are done are stood in for by
    what the last of their list returned, if the first piece shows that this makes no difference; a model that uses
    the outputs of all layers is run in full.

    Args:
        model: in evaluation mode.
        layers: names of all layers, in the order of the forward.
        pieces: batches.
        store: holds the trees.
        precision: of the forwards.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], pieces: Sequence[Batch], store: TensorStore, precision: Precision
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._layers = layers
        self._pieces = pieces
        self._store = store
        self._precision = precision
        self._done: list[str] = []
        self._open: dict[str, Sequence[Stored]] = {}
        self._latest: dict[str, list[Stored]] = {}  # by list: what its last done layer returned

    @property
    def can_be_cut(self) -> bool:
        """Whether the outputs of the first piece are the same behind stand-ins for all layers that are done."""
        whole, behind = (output_tensors(self.outputs(0, shortly=shortly)) for shortly in (False, True))
        return bool(self._done) and _are_close(whole, behind)

    def inputs(self, layer: str) -> list[Stored]:
        """Return for each piece the arguments `(args, kwargs)` of the next layer."""
        first = self._arguments(layer, 0, shortly=False)
        shortly = _are_close(first, self._arguments(layer, 0, shortly=True)) if self._done else False
        rest = (self._arguments(layer, at, shortly) for at in range(1, len(self._pieces)))
        return [self._store.put(first), *map(self._store.put, rest)]

    def follow(self, layer: str, inputs: Sequence[Stored]) -> list[Stored]:
        """Call a layer with its arguments, go on with what it returns for each piece, and return that."""
        made = [self._store.put(self.call(layer, stored)) for stored in inputs]
        self._latest[_list_of(layer)] = made
        self._done.append(layer)
        return made

    def follow_all(self) -> None:
        """Run each piece through all layers, and go on with what the last one of each list returns.

        Forwards end behind the last layer of all: scores of a large vocabulary may take as long as the layers.
        """
        last = {_list_of(layer): layer for layer in self._layers}
        made: dict[str, list[Stored]] = {name: [] for name in last}

        def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
            made[name].append(self._store.put(output))
            if last[name] == self._layers[-1]:
                raise _Reached

        with ExitStack() as hooks:
            for name, layer in last.items():
                hooks.callback(self.model.get_submodule(layer).register_forward_hook(partial(keep, name)).remove)
            for at in range(len(self._pieces)):
                with suppress(_Reached):
                    self.outputs(at, shortly=False)
        self._latest, self._done = made, list(self._layers)

    def open(self, layer: str, inputs: Sequence[Stored]) -> None:
        """Call a layer that is done with its arguments again in every forward: it goes on to change."""
        self._open[layer] = inputs

    def call(self, layer: str, stored: Stored) -> Any:
        """Return what a layer makes of its arguments."""
        args, kwargs = stored.get(self.device)
        with self._precision.autocast():
            return self.model.get_submodule(layer)(*args, **kwargs)

    def outputs(self, at: int, *, shortly: bool = True) -> Any:
        """Return what the model returns for piece number `at`.

        Args:
            at: number of the piece.
            shortly: whether layers that are done are stood in for.
        """
        return self.outputs_and_arguments(at, shortly=shortly)[0]

    def outputs_and_arguments(self, at: int, *, shortly: bool = True) -> tuple[Any, list[Any]]:
        """Return what `outputs` does, and all that the layers that are stood in for were called with."""
        given = prepared(self.model, self._pieces[at])
        try:
            # Past `__call__`: hooks on the whole model are for whole forwards.
            with (
                standing_in(self.model, self._stand_ins(at) if shortly else {}) as arguments,
                self._precision.autocast(),
            ):
                return self.model.forward(**given), arguments
        except Exception as error:
            refuse_batch(self.model, given, error)

    def _arguments(self, layer: str, at: int, shortly: bool) -> Any:
        """Return the arguments of a layer for piece number `at`."""
        caught: list[Any] = []

        def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append((args, kwargs))
            raise _Reached

        handle = self.model.get_submodule(layer).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.outputs(at, shortly=shortly)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    def _stand_ins(self, at: int) -> dict[str, Any]:
        latest = {name: made[at].get(self.device) for name, made in self._latest.items()}
        made = {layer: latest[_list_of(layer)] for layer in self._done}
        return made | {layer: self.call(layer, inputs[at]) for layer, inputs in self._open.items()}


def stream_of(output: Any) -> Tensor:
    """Return the stream that a layer returned."""
    stream: Tensor = tree_leaves(output)[0]
    return stream


def _list_of(layer: str) -> str:
    return layer.rpartition(".")[0]


def _are_close(one: Any, other: Any) -> bool:
    """Return whether all tensors of two trees are the same up to rounding."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return all(a.shape == b.shape and _is_close(a, b) for a, b in tensors)


def _is_close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    limit = CLOSE * float(one.abs().nan_to_num(posinf=0).max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=CLOSE, atol=limit, equal_nan=True)
