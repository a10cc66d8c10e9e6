"""Modules that take the place of layers for one forward and return what these returned before.

A forward with stand-ins for its first layers costs what is left of it. Called by `streams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Returns the given output, whatever it is called with; all other attributes are those of its layer.

    Args:
        layer: whose place it takes.
        output: of the layer.
        given: here goes what it is called with.
    """

    def __init__(self, layer: nn.Module, output: Any, given: list[Any]) -> None:
        super().__init__()
        self._layer = (layer,)  # a tuple keeps it out of the module tree
        self._output = output
        self._given = given

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output."""
        self._given.append((args, kwargs))
        return self._output

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer."""
        return getattr(self._layer[0], name)


@contextmanager
def standing_in(model: nn.Module, outputs: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Let stand-ins return `outputs`, by the name of the layer, inside; then the layers are back in their places.

    Yields a list to which every call of a stand-in adds its arguments.
    """
    given: list[Any] = []
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], name) for name in outputs]
    before = [(parent, key, parent._modules[key]) for parent, key, _ in places]
    try:
        for (parent, key, name), (_, _, layer) in zip(places, before, strict=True):
            assert layer is not None
            parent._modules[key] = StandIn(layer, outputs[name], given)
        yield given
    finally:
        for parent, key, layer in before:
            parent._modules[key] = layer
