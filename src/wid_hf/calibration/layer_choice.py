"""Which layers a shallower student keeps: those without which a teacher's outputs would change most.

Takes a teacher, the names of its layers and batches; gives the numbers of the layers that stay. Called by the tuner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..coupling.trace import quiet_forward
from ..errors import PlanError
from ..progress_bar import progress_bar
from .batches import Batch, prepared
from .bypass import bypassed, first_tensor, stream_given
from .divergence import output_divergence
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


@dataclass(frozen=True)
class _Place:
    """A layer in a stack; where it was left out in a trial, the divergence and what that measures."""

    stack: int
    layer: int
    divergence: float | None = None
    measure: str = ""


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
            places = _by_influence(stacks, kept, influences)
            gone = [name for each in dropped for name in _names(stacks, each.layer)]
            tried = _without(teacher, stacks, places, gone, seen, wanted, precision) if by == "greedy" else places
            best = _first_fitting(tried, kept, fits)
            kept[best.stack].remove(best.layer)
            name = stacks[best.stack].names[best.layer][0]
            dropped.append(Dropped(name, influences[name], best.divergence, best.measure))
    return [tuple(each) for each in kept], dropped


def _by_influence(
    stacks: Sequence[Layers], kept: Sequence[Sequence[int]], influences: Mapping[str, float]
) -> list[_Place]:
    """Return the layers that may go next, that of least influence first."""
    places = [
        _Place(number, layer)
        for number, stack in enumerate(stacks)
        if len(kept[number]) > stack.count
        for layer in kept[number]
    ]
    return sorted(places, key=lambda place: influences[stacks[place.stack].names[place.layer][0]])


def _first_fitting(
    places: Iterable[_Place], kept: Sequence[Sequence[int]], fits: Callable[[Sequence[Kept]], bool]
) -> _Place:
    """Return the first layer without which the others make a model.

    Raises:
        PlanError: there is none.
    """
    for place in places:
        if fits(
            [tuple(each for each in own if (at, each) != (place.stack, place.layer)) for at, own in enumerate(kept)]
        ):
            return place
    raise PlanError(
        "- layers of this model differ in kind, and without any one of them others stand in wrong places. Give "
        "layers=[...] that keep the pattern of kinds"
    )


def _without(
    teacher: nn.Module,
    stacks: Sequence[Layers],
    places: Sequence[_Place],
    gone: Sequence[str],
    batches: Sequence[Batch],
    wanted: Sequence[Any],
    precision: Precision,
) -> Iterator[_Place]:
    """Yield the layers that can go with divergence and measure, some of least influence at a time, the least first."""
    for at in range(0, len(places), TRIED):
        found: list[tuple[float, str, _Place]] = []
        for place in places[at : at + TRIED]:
            try:
                with bypassed(teacher, [*gone, *stacks[place.stack].names[place.layer]]):
                    found.append((*output_divergence(wanted, _outputs(teacher, batches, precision), batches), place))
            except PlanError:  # it makes another stream than it is given, as the first one of a stage: it must stay
                continue
        for score, measure, place in sorted(found, key=lambda each: each[0]):
            yield replace(place, divergence=score, measure=measure)


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
            made = first_tensor(output)
            if stream is not None and made is not None:
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


def _outputs(model: nn.Module, batches: Sequence[Batch], precision: Precision) -> list[Any]:
    with precision.autocast():
        return [model.forward(**prepared(model, batch)) for batch in batches]
