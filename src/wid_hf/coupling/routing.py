"""By how many places to roll the rows of routers, so that experts without a token get some.

Takes a trace, gives what `Example.rolled` takes. Called by `trace_teacher`. No expert is assumed to be like another.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .dims import leaves
from .trace import Trace

TRIES = 16


def rolled_routers(trace: Trace) -> Iterator[dict[str, int]]:
    """Yield, for each router, by how many places to roll its rows, while a list of modules is reached only in part.

    A router has as many rows as the list has entries, and these rows are frozen, since they were chosen by number.
    With its rows rolled it is still a router that the model could have.
    """
    for number in range(1, TRIES + 1):
        missing = set(trace.unreached)
        lists = {len(m) for name, m in trace.model.named_modules() if _partly_reached(name, m, trace, missing)}
        routers = {
            name: size * number // TRIES or 1 if size > TRIES else number
            for size in lists
            if size > TRIES or number < size
            for name in trace.reached
            if _chooses(trace, name, size)
        }
        if not routers:
            return
        yield routers


def _partly_reached(name: str, module: nn.Module, trace: Trace, missing: set[str]) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    inside = {own.removeprefix(f"{name}."): own for own in trace.weights if own.startswith(f"{name}.")}
    empty = {rest.partition(".")[0] for rest, own in inside.items() if own in missing}
    full = {rest.partition(".")[0] for rest, own in inside.items() if own in trace.reached}
    return bool(empty) and bool(full)


def _chooses(trace: Trace, name: str, size: int) -> bool:
    weight, dims = trace.weights[name], trace.weight_dims[name]
    return (
        1 <= weight.ndim <= 2 and weight.shape[0] == size and all(leaf.frozen is not None for leaf in leaves(dims[0]))
    )
