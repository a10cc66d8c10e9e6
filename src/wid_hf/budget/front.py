"""The shapes that fill a target: for each mix of width, inner width, heads and depth the largest one below it.

Takes a teacher and a `Target`; gives a `Front` of some dozens of candidates, spread over the mixes. Nothing is planned
here: `halving` does that for those it tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, log

from transformers import PreTrainedModel

from ..errors import PlanError
from ..progress_bar import progress_bar
from .costs import Costs
from .latency import NOISE, Timer
from .shapes import DEPTH, HIDDEN, INNER, Mix, Shape, Space
from .targets import Target, in_words

MOST = 24  # candidates
POWERS = {1: (1.0,), 2: (0.0, 0.25, 0.5, 0.75, 1.0)}  # of a mix, by the number of axes
FEW_POWERS = (0.0, 0.5, 1.0)  # with more axes
LEAST_SCALE = 2.0**-6
CLOSE = 1.005  # scales that differ by less are not told apart
SLACK = {False: 0.002, True: 0.05}  # share of a target that may stay unused: counted, measured
MOST_TRIES = 16
INSIDE = 0.1  # of an interval: a guess stays so far from its ends


@dataclass(frozen=True)
class Candidate:
    """A shape that fills a target.

    Attributes:
        shape: its sizes.
        needs: what it needs, by the names of a `Target`; latency and memory only if they were asked for.
        filled: the largest share of what a student may need, at most 1.
    """

    shape: Shape
    needs: Mapping[str, float]
    filled: float


@dataclass(frozen=True)
class Front:
    """The candidates for one target, in the order in which they should be tried.

    Attributes:
        space: the sizes that students may have.
        limits: the most that a student may need, by name.
        teacher: what the teacher needs, by name.
        candidates: the guess first, then each as far from those before it as possible.
        tried: mixes that were filled.
        seconds: wall time of filling the target.
    """

    space: Space
    limits: Mapping[str, float]
    teacher: Mapping[str, float]
    candidates: tuple[Candidate, ...]
    tried: int
    seconds: float

    @property
    def guess(self) -> Candidate:
        """The candidate whose widths shrink in one proportion, with all layers if that is possible."""
        return self.candidates[0]

    def planned_guess(self) -> Candidate:
        """Return the first candidate that the plan accepts: the best guess without a search.

        Raises:
            PlanError: it accepts none; says why not the first.
        """
        refused: PlanError | None = None
        for candidate in self.candidates:
            try:
                self.space.plan(candidate.shape)
            except PlanError as refusal:
                refused = refused or refusal
            else:
                return candidate
        raise PlanError(
            f"None of the {len(self.candidates)} shapes that fill the target can be planned:\n{refused}"
        ) from refused

    def __str__(self) -> str:
        """Return what was asked for, how many shapes fill it, and what rounding costs."""
        asked = " and ".join(in_words(name, most) for name, most in self.limits.items())
        unused = [1 - each.filled for each in self.candidates]
        heads = self.space.heads.in_words([each.shape for each in self.candidates])
        more = "All sizes shrink by one scale, for the model has several parts." if self.space.one_scale else heads
        return (
            f"At most {asked}: {len(self.candidates)} shapes of {self.tried} mixes. Sizes are multiples of "
            f"{self.space.step}, which leaves {min(unused):.1%} to {max(unused):.1%} of the target unused. {more}"
        ).strip()


def propose(
    teacher: PreTrainedModel,
    target: Target,
    *,
    round_to: int | None = None,
    layers: Sequence[int] | None = None,
    most: int = MOST,
    timer: Timer | None = None,
) -> Front:
    """Return the shapes that fill a target.

    Args:
        teacher: a stock transformers model with real weights.
        target: the most that a student may need.
        round_to: what sizes are multiples of; see `Space.of`.
        layers: numbers of layers that students may have; see `Space.of`.
        most: candidates.
        timer: measures latency; by default on the teacher's device.

    Raises:
        ConfigError: see `filled`; an illegal `round_to` or number of layers.
        PlanError: no size of the teacher may shrink.
        TeacherError: the teacher cannot be planned with.
        WidError: the machine is too noisy to measure a latency.
    """
    return filled(Space.of(teacher, round_to=round_to, layers=layers), target, most=most, timer=timer)


def filled(space: Space, target: Target, *, most: int = MOST, timer: Timer | None = None) -> Front:
    """Return the shapes of a space that fill a target.

    Args:
        space: the sizes that students of the teacher may have.
        target: the most that a student may need.
        most: candidates.
        timer: measures latency; by default on the teacher's device.

    Raises:
        ConfigError: the target is below what the smallest student needs, or above what the teacher needs.
        WidError: the machine is too noisy to measure a latency.
    """
    began = time.monotonic()
    costs = Costs(space, target, timer)
    mixes = _mixes(space)
    found: dict[tuple[tuple[str, int], ...], Candidate] = {}
    for mix in progress_bar(mixes, "Filling the target"):
        if (shape := _largest(space, costs, mix)) is not None:
            needs = costs.needs(shape)
            found.setdefault(tuple(sorted(shape.items())), Candidate(shape, needs, costs.ratio(shape)))
    if not found:
        raise costs.refuse(_smallest(space, costs, mixes))
    kept = _not_dominated(space, [*found.values()])
    if "latency_ms" in costs.limits:
        kept = _confirmed(costs, kept)
    return Front(space, costs.limits, costs.teacher, tuple(_spread(kept, most)), len(mixes), time.monotonic() - began)


def _mixes(space: Space) -> list[Mix]:
    """Return all mixes: those in one proportion first, of these the ones with all layers first."""
    axes = space.axes
    levels = POWERS.get(len(axes), FEW_POWERS)
    powers = [dict(zip(axes, each, strict=True)) for each in product(levels, repeat=len(axes)) if max(each) == 1]

    def unevenness(power: Mapping[str, float]) -> tuple[float, float]:
        widths = [value for axis, value in power.items() if axis != DEPTH]
        return max(widths) - min(widths) if widths else 1.0, power.get(DEPTH, 0.0)

    return [Mix(power, manner) for power in sorted(powers, key=unevenness) for manner in space.manners]


def _largest(space: Space, costs: Costs, mix: Mix) -> Shape | None:
    """Return the largest shape of a mix that fulfils the target, None if none does."""

    def at(scale: float) -> Shape:
        return space.shape(mix, scale)

    try:
        scale = _scale(lambda scale: costs.ratio(at(scale)), at, SLACK[costs.measures])
        if scale is None:
            return None
        shape = at(scale)
        return shape if costs.measures else _widened(space, costs, mix, shape)
    except PlanError:  # the class has no model of these sizes
        return None


def _smallest(space: Space, costs: Costs, mixes: Sequence[Mix]) -> Shape:
    """Return the shape that needs the least of those that can be made at the smallest scale.

    Raises:
        PlanError: none can be made.
    """
    ratios: list[tuple[float, Shape]] = []
    for mix in mixes:
        try:
            shape = space.shape(mix, LEAST_SCALE)
            ratios.append((costs.ratio(shape), shape))
        except PlanError as refusal:
            if mix is mixes[-1] and not ratios:
                raise refusal
    return min(ratios, key=lambda each: each[0])[1]


def _scale(ratio: Callable[[float], float], at: Callable[[float], Shape], slack: float) -> float | None:
    """Return the largest scale whose ratio is at most 1: by interpolation, for each ratio may be a measurement."""
    low, high = LEAST_SCALE, 1.0
    of_low, of_high = ratio(low), ratio(high)
    if of_low > 1:
        return None
    if of_high <= 1:
        return high
    for _ in range(MOST_TRIES):
        if of_low >= 1 - slack or high < low * CLOSE or at(low) == at(high):
            break
        share = -log(of_low) / (log(of_high) - log(of_low))
        share = min(max(share, INSIDE), 1 - INSIDE)
        middle = exp(log(low) + share * (log(high) - log(low)))
        if (of_middle := ratio(middle)) <= 1:
            low, of_low = middle, of_middle
        else:
            high, of_high = middle, of_middle
    return low


def _widened(space: Space, costs: Costs, mix: Mix, shape: Shape) -> Shape:
    """Return `shape` with what still fits of steps of its widths."""
    axes = {**dict.fromkeys(space.hidden, HIDDEN), **dict.fromkeys(space.inner, INNER)}
    for name in [] if space.one_scale else [name for name, axis in axes.items() if mix.powers.get(axis)]:
        while (larger := space.grown(shape, name, mix.manner)) is not None and costs.ratio(larger) <= 1:
            shape = larger
    return shape


def _not_dominated(space: Space, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other exceeds or equals in every size, and exceeds in one."""

    def sizes(candidate: Candidate) -> dict[str, int]:
        heads = {"num_attention_heads", "num_key_value_heads"}  # they follow from widths unless they are free
        return {n: s for n, s in candidate.shape.items() if space.heads.is_free or n not in heads}

    def dominates(other: Candidate, one: Candidate) -> bool:
        ours, theirs = sizes(one), sizes(other)
        return ours != theirs and all(theirs[name] >= size for name, size in ours.items())

    return [one for one in candidates if not any(dominates(other, one) for other in candidates)]


def _confirmed(costs: Costs, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that fill the target by a second measurement too; the one that does best if none does."""
    again = [
        Candidate(each.shape, costs.measure_again(each.shape), costs.ratio(each.shape))
        for each in progress_bar(candidates, "Measuring again")
    ]
    return [each for each in again if each.filled >= 1 - NOISE] or [max(again, key=lambda each: each.filled)]


def _spread(candidates: Sequence[Candidate], most: int) -> Iterator[Candidate]:
    """Yield at most `most` candidates: the first, then always the one that is farthest from those before it."""
    points = [[log(size) for size in each.shape.values()] for each in candidates]
    near = [float("inf")] * len(points)
    at = 0
    for _ in range(min(most, len(points))):
        yield candidates[at]
        near = [
            min(distance, sum((a - b) ** 2 for a, b in zip(point, points[at], strict=True)))
            for distance, point in zip(near, points, strict=True)
        ]
        near[at] = -1.0
        at = max(range(len(points)), key=near.__getitem__)
