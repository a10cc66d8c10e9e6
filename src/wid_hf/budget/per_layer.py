"""Inner widths that differ from layer to layer, at the cost of widths that do not.

Takes a shape and its space; gives profiles: some layers get steps that others lose. Only for inner widths that the
config states as a list with an entry for each layer (Gemma 3n). Called by `halving`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf

from transformers import PretrainedConfig

from ..config import COUNT
from ..errors import PlanError
from ..hub.model_size import model_size
from ..planning.sizes.student_config import with_sizes
from .shapes import Shape, Space, student_skeleton

SWING = 0.5  # of a width: how much more or less a layer may have
PROFILES: Mapping[str, Callable[[float], float]] = {
    "growing": lambda at: at,
    "falling": lambda at: -at,
    "wide in the middle": lambda at: -abs(at),
    "narrow in the middle": abs,
}
"""How wide a layer is by its place, from -1 for the first to 1 for the last; scaled and moved so that the sum stays."""


@dataclass(frozen=True)
class Profile:
    """Widths of each layer.

    Attributes:
        name: how they change from the first layer to the last.
        widths: by the name of the entry, one for each layer.
    """

    name: str
    widths: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        """Return the profile as it is printed."""
        told = "; ".join(f"{name}={list(widths)}" for name, widths in self.widths.items())
        return f"{self.name}, {told}"


@dataclass(frozen=True)
class ScoredProfile:
    """A profile that was tried, and the divergence of its calibrated start on the winner's texts."""

    profile: Profile
    score: float


def profiles(space: Space, shape: Shape) -> Iterator[Profile]:
    """Yield the profiles of a shape whose student has no more parameters; none where its class has no lists."""
    names = [name for name in space.lists if name in space.inner and shape[name] < space.inner[name]]
    if not names:
        return
    count = shape.get(COUNT, space.lists[names[0]])
    config = space.student_config(shape)
    most = model_size(student_skeleton(space.teacher, config)).total
    for title, place in PROFILES.items():
        values = [place(2 * at / max(count - 1, 1) - 1) for at in range(count)]
        widths = {name: moved(values, shape[name], space.inner[name], space.step) for name in names}
        if any(len(set(each)) > 1 for each in widths.values()) and _costs(space, config, widths) <= most:
            yield Profile(title, widths)


def _costs(space: Space, config: PretrainedConfig, widths: Mapping[str, tuple[int, ...]]) -> float:
    """Return the parameters of a student with other widths; infinite if its class wants layers alike."""
    try:
        return model_size(student_skeleton(space.teacher, with_sizes(config, widths))).total
    except PlanError:
        return inf


def moved(values: Sequence[float], size: int, whole: int, step: int) -> tuple[int, ...]:
    """Return a width for each layer, by steps away from `size`, that add up to as much as without a profile.

    Args:
        values: of each layer, more for a wider one.
        size: the width that all have without a profile.
        whole: the teacher's width, which none exceeds.
        step: what widths differ by; none has less.
    """
    mean = sum(values) / len(values)
    away = [value - mean for value in values]
    largest = max(map(abs, away))
    most = min(int(SWING * size), whole - size, size - step) // step
    if most < 1 or not largest:
        return (size,) * len(values)
    wanted = [round(most * each / largest, 9) for each in away]
    steps = [floor(each) for each in wanted]
    rest = sorted(
        range(len(wanted)), key=lambda at: steps[at] - wanted[at]
    )  # the largest part that was cut comes first
    for at in rest[: -sum(steps)] if sum(steps) else []:
        steps[at] += 1
    return tuple(size + step * each for each in steps)
