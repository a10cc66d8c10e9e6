"""Which layers a shallower student keeps: those without which a teacher's outputs would change most.

Takes a teacher, the names of its layers and batches; gives the numbers of the layers that stay. Called by the tuner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..coupling.trace import quiet_forward
from ..errors import PlanError
from ..progress_bar import progress_bar
from .batches import Batch, prepared
from .bypass import bypassed, first_tensor, stream_given
from .divergence import logits_in, output_divergence
from .division import can_be_cut, cut, parted, texts_in, tokens_in
from .padding import NO_LABEL, Padding
from .precision import Precision
from .report import Dropped

SCORED = 64  # texts at most
POSITIONS = 1024  # that are scored, about, where outputs are scores of positions
TRIED = 8  # layers of least influence that are tried without at first, and more if none of these can go
AGAIN = 3  # layers that are tried without once more after another one has gone

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

    @property
    def key(self) -> tuple[int, int]:
        """Which layer it is."""
        return self.stack, self.layer


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
        batches: keyword dictionaries for the teacher's forward; at most 64 texts are used, and fewer if they have more
            than about 1,024 scored positions.
        precision: of the forwards.
        by: `"greedy"` or `"influence"`.
        fits: says whether some layers of each stack make a model; only those that do are kept.

    Raises:
        DataError: the forward raised on a batch.
        PlanError: no choice of layers makes a model.
    """
    seen = _some(teacher, batches, precision)
    influences = _influences(teacher, stacks, seen, precision)
    kept = [list(range(len(stack.names))) for stack in stacks]
    dropped: list[Dropped] = []
    with torch.no_grad(), precision.full(), quiet_forward(teacher):
        trials = _Trials(teacher, stacks, seen, precision) if by == "greedy" else None
        total = sum(len(stack.names) - stack.count for stack in stacks)
        for _ in progress_bar(range(total), "Choosing layers", total):
            places = _by_influence(stacks, kept, influences)
            best = _first_fitting(places if trials is None else trials.ordered(places), kept, fits)
            kept[best.stack].remove(best.layer)
            name = stacks[best.stack].names[best.layer][0]
            dropped.append(Dropped(name, influences[name], best.divergence, best.measure))
            if trials is not None:
                trials.drop(best)
    return [tuple(each) for each in kept], dropped


class _Trials:
    """Divergences of a teacher without some layers.

    A divergence rarely becomes smaller because another layer goes as well. So after each layer that has gone, those
    that were missed least so far are tried again, and others only while what is known of them is below the best.

    Args:
        teacher: the model.
        stacks: its layers.
        batches: what it reads.
        precision: of the forwards.
    """

    def __init__(
        self, teacher: nn.Module, stacks: Sequence[Layers], batches: Sequence[Batch], precision: Precision
    ) -> None:
        self._teacher, self._stacks = teacher, stacks
        self._batches, self._precision = batches, precision
        self._wanted = _outputs(teacher, batches, precision)
        self._gone: list[str] = []
        self._known: dict[tuple[int, int], float] = {}  # of the last trial of each layer

    def drop(self, place: _Place) -> None:
        """Leave a layer out of all trials from now on."""
        self._gone += self._stacks[place.stack].names[place.layer]

    def ordered(self, places: Sequence[_Place]) -> Iterator[_Place]:
        """Yield the layers with their divergences, that which is missed least first.

        Args:
            places: layers that may go, that of least influence first.
        """
        new = [place for place in places if place.key not in self._known]
        known = sorted((place for place in places if place.key in self._known), key=self._least)
        count = max(TRIED - len(known), 0)
        now, later = [*known[:AGAIN], *new[:count]], [*known[AGAIN:], *new[count:]]
        tried = sorted(map(self._tried, now), key=_divergence)
        while tried or later:
            while later and (not tried or self._least(later[0]) < _divergence(tried[0])):
                tried = sorted([*tried, self._tried(later.pop(0))], key=_divergence)
            yield tried.pop(0)

    def _least(self, place: _Place) -> float:
        return self._known.get(place.key, inf)

    def _tried(self, place: _Place) -> _Place:
        try:
            with bypassed(self._teacher, [*self._gone, *self._stacks[place.stack].names[place.layer]]):
                outputs = _outputs(self._teacher, self._batches, self._precision)
            score, measure = output_divergence(self._wanted, outputs, self._batches)
        except PlanError:  # it makes another stream than it is given, as the first one of a stage: it must stay
            score, measure = inf, ""
        self._known[place.key] = score
        return replace(place, divergence=score, measure=measure)


def _divergence(place: _Place) -> float:
    return inf if place.divergence is None else place.divergence


def _some(teacher: nn.Module, batches: Sequence[Batch], precision: Precision) -> Sequence[Batch]:
    """Return the first 64 texts, or as many as have about 1,024 scored positions if outputs are scores of positions."""
    seen = parted(batches, SCORED)[0] or [*batches[:1]]
    texts = sum(map(texts_in, seen))
    first = [cut(seen[0], 0, 1)] if can_be_cut(seen[0]) else [seen[0]]
    with torch.no_grad(), precision.full(), quiet_forward(teacher):
        (output,) = _outputs(teacher, first, precision)
    if not any(tensor.ndim > 2 for tensor in logits_in(output)) or not tokens_in(seen):
        return seen
    labelled = sum(int(batch["labels"].ne(NO_LABEL).sum()) for batch in seen if "labels" in batch)
    positions = min(labelled or tokens_in(seen), tokens_in(seen))
    return parted(seen, max(ceil(texts * POSITIONS / positions), 1))[0] or [*seen[:1]]


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
        if fits([tuple(each for each in own if (at, each) != place.key) for at, own in enumerate(kept)]):
            return place
    raise PlanError(
        "- layers of this model differ in kind, and without any one of them others stand in wrong places. Give "
        "layers=[...] that keep the pattern of kinds"
    )


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


def _outputs(model: nn.Module, batches: Sequence[Batch], precision: Precision) -> list[Any]:
    with precision.autocast():
        return [model.forward(**prepared(model, batch)) for batch in batches]
