"""Streams that go into layers and come out of them; forwards that pass layers by.

Called by `layer_choice`, and by `planning` for teachers with fewer layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import PlanError


@contextmanager
def bypassed(model: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Let forwards of `model` pass by the layers of these names: each returns the stream that it was given.

    A layer is called as always, and the first tensor of what it returns is replaced: behind its `forward`, which some
    models call without its hooks.

    Raises:
        PlanError: in a forward, if a layer returns nothing that has the shape of something it was given.
    """
    with ExitStack() as layers_passed:
        for name in layers:
            layers_passed.enter_context(_passed_by(model.get_submodule(name)))
        yield


@contextmanager
def _passed_by(layer: nn.Module) -> Iterator[None]:
    own, forward = vars(layer).get("forward"), layer.forward

    def passing(*args: Any, **kwargs: Any) -> Any:
        return _without(layer, args, kwargs, forward(*args, **kwargs))

    layer.forward = passing
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def stream_given(args: Any, kwargs: Any, output: Any) -> Tensor | None:
    """Return the first tensor given to a layer that has the shape of the first one it returned, if there is one."""
    made = first_tensor(output)
    if made is None:
        return None
    given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next((leaf for leaf in given if leaf.shape == made.shape), None)


def first_tensor(output: Any) -> Tensor | None:
    """Return the stream that a layer returned, if it returned a tensor."""
    return next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)


def with_stream(output: Any, stream: Tensor | None) -> Any:
    """Return what a layer returned with another stream in it."""
    parts, spec = tree_flatten(output)
    first = next(at for at, leaf in enumerate(parts) if isinstance(leaf, Tensor))
    return tree_unflatten([*parts[:first], stream, *parts[first + 1 :]], spec)


def _without(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    stream = stream_given(args, kwargs, output)
    if stream is None:
        raise PlanError(f"- {type(layer).__name__} does not return a stream like the one it is given: it cannot go")
    return with_stream(output, stream)
