"""Which layers a shallower student keeps: those without which a teacher's outputs would change most.

Takes a teacher, the names of its layers and batches; gives the numbers of the layers that stay. Called by the tuner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from ..coupling.trace import quiet_forward
from ..errors import PlanError
from ..progress_bar import progress_bar
from .batches import Batch, prepared
from .bypass import bypassed, stream_given
from .divergence import divergence, seen_by_callers
from .division import parted
from .padding import Padding
from .precision import Precision
from .report import Dropped

SCORED = 64  # texts at most
TRIED = 8  # layers of least influence that are tried without, each time one is dropped

Kept = tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """Layers of which some stay.

    Attributes:
        names: of every layer's modules, in order; usually one module.
        count: how many stay.
    """

    names: tuple[tuple[str, ...], ...]
    count: int


def choose_layers(
    teacher: nn.Module,
    stacks: Sequence[Layers],
    batches: Sequence[Batch],
    precision: Precision,
    *,
    by: str = "greedy",
    fits: Callable[[Sequence[Kept]], bool] = lambda _: True,
) -> tuple[list[Kept], list[Dropped]]:
    """Return the layers of each stack that stay, and those that go in the order in which they were dropped.

    One layer after the other is dropped: of those with the least block influence (Men et al. 2024, "ShortGPT") the one
    without which outputs diverge least from the whole teacher's. With `by="influence"` no divergence is measured.

    Args:
        teacher: runs as it is, in evaluation mode, without gradients.
        stacks: the layers.
        batches: keyword dictionaries for the teacher's forward; at most 64 texts are used.
        precision: of the forwards.
        by: `"greedy"` or `"influence"`.
        fits: says whether some layers of each stack make a model; only those that do are kept.

    Raises:
        DataError: the forward raised on a batch.
        PlanError: no choice of layers makes a model.
    """
    seen = parted(batches, SCORED)[0] or [*batches[:1]]
    influences = _influences(teacher, stacks, seen, precision)
    kept = [list(range(len(stack.names))) for stack in stacks]
    dropped: list[Dropped] = []
    with torch.no_grad(), precision.full(), quiet_forward(teacher):
        wanted = _outputs(teacher, seen, precision) if by == "greedy" else []
        total = sum(len(stack.names) - stack.count for stack in stacks)
        for _ in progress_bar(range(total), "Choosing layers", total):
            places = _by_influence(stacks, kept, influences, fits)
            gone = [name for each in dropped for name in _names(stacks, each.layer)]
            best: tuple[int, int, float | None, str] = (*places[0], None, "")
            if by == "greedy":
                best = _least(teacher, stacks, places, gone, seen, wanted, precision)
            stack, layer, found, measure = best
            kept[stack].remove(layer)
            name = stacks[stack].names[layer][0]
            dropped.append(Dropped(name, influences[name], found, measure))
    return [tuple(each) for each in kept], dropped


def _by_influence(
    stacks: Sequence[Layers],
    kept: Sequence[Sequence[int]],
    influences: Mapping[str, float],
    fits: Callable[[Sequence[Kept]], bool],
) -> list[tuple[int, int]]:
    """Return the layers that may go next, as stack and number, that of least influence first.

    Raises:
        PlanError: without any of them the others are no model.
    """
    places = [
        (number, layer)
        for number, stack in enumerate(stacks)
        if len(kept[number]) > stack.count
        for layer in kept[number]
    ]
    places.sort(key=lambda place: influences[stacks[place[0]].names[place[1]][0]])
    fitting = []
    for number, layer in places:
        left = [tuple(each for each in own if (at, each) != (number, layer)) for at, own in enumerate(kept)]
        if fits(left):
            fitting.append((number, layer))
        if len(fitting) == TRIED:
            break
    if not fitting:
        raise PlanError(
            "- layers of this model differ in kind, and without any one of them the others are in wrong places. Give "
            "layers=[...] that keep the pattern of its kinds"
        )
    return fitting


def _least(
    teacher: nn.Module,
    stacks: Sequence[Layers],
    places: Sequence[tuple[int, int]],
    gone: Sequence[str],
    batches: Sequence[Batch],
    wanted: Sequence[Sequence[Tensor]],
    precision: Precision,
) -> tuple[int, int, float, str]:
    """Return the layer without which outputs diverge least, with the divergence and its measure."""
    found = []
    for stack, layer in places:
        with bypassed(teacher, [*gone, *stacks[stack].names[layer]]):
            found.append((stack, layer, *divergence(wanted, _outputs(teacher, batches, precision), batches)))
    return min(found, key=lambda each: each[2])


def _influences(
    teacher: nn.Module, stacks: Sequence[Layers], batches: Sequence[Batch], precision: Precision
) -> dict[str, float]:
    """Return 1 less the mean cosine of the stream before and after each layer, by its first module's name."""
    sums: dict[str, float] = {each[0]: 0.0 for stack in stacks for each in stack.names}
    counts = dict.fromkeys(sums, 0)
    padding = Padding({})

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            stream = stream_given(args, kwargs, output)
            if stream is not None:
                made = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
                before, after = (padding.rows(each).float() for each in (stream, made))
                same = functional.cosine_similarity(before, after, dim=-1)
                sums[name] += float(same.sum())
                counts[name] += len(same)

        return hook

    with ExitStack() as hooks, torch.no_grad(), precision.full(), quiet_forward(teacher):
        for name in sums:
            hooks.callback(teacher.get_submodule(name).register_forward_hook(note(name), with_kwargs=True).remove)
        for batch in batches:
            padding = Padding(batch)
            _outputs(teacher, [batch], precision)
    return {name: 1 - total / max(counts[name], 1) for name, total in sums.items()}


def _names(stacks: Sequence[Layers], layer: str) -> tuple[str, ...]:
    return next(names for stack in stacks for names in stack.names if names[0] == layer)


def _outputs(model: nn.Module, batches: Sequence[Batch], precision: Precision) -> list[list[Tensor]]:
    with precision.autocast():
        return [seen_by_callers(model.forward(**prepared(model, batch))) for batch in batches]
