"""A shallower teacher that computes what the whole one does: behind the layers that stay run those that were dropped.

Takes both teachers; hooks exist only inside. A student is calibrated on it, so that the layers which stay learn to do
without the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from ...calibration.bypass import first_tensor, stream_given, with_stream
from ...coupling import Example
from ..same_function import is_same_function
from .stacks import Stack


@contextmanager
def deepened(shallow: PreTrainedModel, whole: PreTrainedModel, stacks: Sequence[Stack]) -> Iterator[None]:
    """Let forwards of `shallow` run the layers of `whole` that it lacks, each behind the layer before it.

    A layer that was dropped gets the arguments of the layer that stays, with another stream.

    Args:
        shallow: as `shallow_teacher` made it.
        whole: what it was made from.
        stacks: the layers that stay.
    """
    with ExitStack() as hooks:
        for stack in stacks:
            for name in stack.lists:
                kept = stack.kept or ()
                for at, (layer, after) in enumerate(pairwise([*kept, stack.old])):
                    dropped = [whole.get_submodule(f"{name}.{each}") for each in range(layer + 1, after)]
                    module = shallow.get_submodule(f"{name}.{at}")
                    if dropped:
                        hooks.callback(module.register_forward_hook(_Behind(dropped), with_kwargs=True).remove)
                before = [whole.get_submodule(f"{name}.{each}") for each in range(kept[0])]
                if before:
                    module = shallow.get_submodule(f"{name}.0")
                    hooks.callback(module.register_forward_pre_hook(_Before(before), with_kwargs=True).remove)
        yield


def can_be_deepened(
    shallow: PreTrainedModel, whole: PreTrainedModel, stacks: Sequence[Stack], example: Example
) -> bool:
    """Return whether the deepened model computes what the whole one does: not where layers get different arguments.

    Args:
        shallow: see `deepened`.
        whole: see `deepened`.
        stacks: see `deepened`.
        example: a small forward.
    """
    with deepened(shallow, whole, stacks):
        try:
            return is_same_function(shallow, whole, example)
        except Exception:  # a layer may raise anything for arguments of another kind of layer
            return False


class _Behind:
    """A forward hook that runs more layers on the stream that a layer returned."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers

    def __call__(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = stream_given(args, kwargs, output)
        for each in self._layers:
            output = with_stream(output, _passed(each, args, kwargs, given, first_tensor(output)))
        return output


class _Before:
    """A forward pre-hook that runs more layers on the stream that a layer is given."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers

    def __call__(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        for each in self._layers:
            output = each(*args, **kwargs)
            given = stream_given(args, kwargs, output)
            args, kwargs = _exchanged((args, kwargs), given, first_tensor(output))
        return args, kwargs


def _passed(layer: nn.Module, args: Any, kwargs: Any, given: Tensor | None, stream: Tensor | None) -> Tensor | None:
    args, kwargs = _exchanged((args, kwargs), given, stream)
    return first_tensor(layer(*args, **kwargs))


def _exchanged(tree: Any, old: Tensor | None, new: Tensor | None) -> Any:
    return tree_map(lambda leaf: new if leaf is old and old is not None else leaf, tree)
