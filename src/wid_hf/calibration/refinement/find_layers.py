"""Which modules are layers that can be cut out of a forward.

Takes a student and one batch; gives the layers' names in the order in which they run. Called by `layer_by_layer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...coupling.dims import leaves
from ...coupling.plan import Plan
from ...coupling.trace import Trace
from ..batches import Batch, prepared, refuse_batch
from ..precision import Precision

PLAIN = (Tensor, bool, int, float, str, type(None))


def find_layers(student: nn.Module, trace: Trace, plan: Plan, batch: Batch, precision: Precision) -> list[str]:
    """Return the names of all layers in the order of the forward.

    Layers are the members of an `nn.ModuleList` if each one that is called at all is called once, takes a stream and
    returns another of the same shape first, whose last axis is one of weights. Of nested lists the outermost counts.

    Raises:
        DataError: the student's forward raised on the batch.
    """
    lists = {name: module for name, module in student.named_modules() if isinstance(module, nn.ModuleList)}
    in_weights = {leaf for axes in plan.axes.values() for dim in axes for leaf in leaves(dim)}
    calls: Counter[str] = Counter()
    unfit: set[str] = set()

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[name] += 1
        dims = trace.module_outputs.get(name, ())
        is_known = bool(dims) and in_weights.issuperset(leaves(dims[-1]))
        if calls[name] > 1 or not is_known or not _is_layer(args, kwargs, output, plan.size(dims[-1])):
            unfit.add(name)

    given = prepared(student, batch)
    with ExitStack() as hooks:
        for name, members in lists.items():
            for key, member in members.named_children():
                handle = member.register_forward_hook(partial(note, f"{name}.{key}"), with_kwargs=True)
                hooks.callback(handle.remove)
        try:
            with precision.autocast():
                student.forward(**given)
        except Exception as error:
            refuse_batch(student, given, error)
    layers = set(_outermost(lists, list(calls), unfit))
    return [name for name in calls if name in layers]


def _is_layer(args: Any, kwargs: Any, output: Any, width: int) -> bool:
    """Return whether a call got a stream and returned one of the same shape, `width` wide."""
    given, made = tree_leaves((args, kwargs)), tree_leaves(output)
    stream = made[0] if made else None
    if not isinstance(stream, Tensor) or stream.ndim < 2 or stream.shape[-1] != width:
        return False
    streams = [leaf.shape for leaf in given if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # Anything else, such as a cache of keys, may change at each call.
    return stream.shape in streams and all(isinstance(leaf, PLAIN) for leaf in [*given, *made])


def _outermost(lists: Mapping[str, nn.ModuleList], called: Sequence[str], unfit: set[str]) -> Iterator[str]:
    """Yield the called members of each list where they all fit, unless the list lies inside of such a member."""
    found: list[str] = []
    for name, members in lists.items():
        own = {f"{name}.{key}" for key, _ in members.named_children()}
        layers = [each for each in called if each in own]
        if unfit.isdisjoint(layers) and not any(name.startswith(f"{layer}.") for layer in found):
            found += layers
    yield from found
