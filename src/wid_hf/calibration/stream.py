"""Streams that may be turned: residual streams that keep combinations of their indices instead of some of them.

A linear map commutes with everything that a residual stream meets, except with multiplications by vectors (the weights
of norms): those before a matrix go into the matrix, those that stay in the stream are fitted. Takes a plan, and finds
what may be such streams. Called by `stream_proof`, which proves them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..coupling.dims import Dim, key, leaves
from ..coupling.landmark_record import Scaling
from ..coupling.plan import Plan
from ..coupling.spaces import Axis

Place = tuple[str, int]  # a weight and one of its axes


@dataclass(frozen=True)
class Stream:
    """A coupled dimension, or a part of one, that any orthogonal matrix may turn.

    Attributes:
        leaf: the dimension.
        spaces: numbers of its spaces (see `coupling.spaces`), each before or after a multiplication by a vector.
        centred: whether norms subtract the mean over indices: then only matrices that keep the vector of ones may
            turn it.
        axes: every axis of a weight along the stream, but for the vectors of `folded` and `fitted`.
        folded: multiplications by a vector whose results only matrices take: the vector goes into these matrices.
        fitted: all other ones.
        readers: for each weight that a folded one's result is contracted with, that one.
        tied: tables of this stream that are contracted with the result of one of `folded` as well.
        heads: tables of this stream that are contracted with something that may not be turned.
        is_output: whether callers of the model see the stream.
    """

    leaf: Dim
    spaces: frozenset[int]
    centred: bool
    axes: frozenset[Place]
    folded: tuple[Scaling, ...]
    fitted: tuple[Scaling, ...]
    readers: Mapping[Place, Scaling]
    tied: frozenset[str]
    heads: frozenset[str]
    is_output: bool


def candidate_streams(plan: Plan, outputs_too: bool) -> Iterator[Stream]:
    """Yield what may be a stream that can be turned, by its place alone; `stream_proof` decides.

    A candidate is a shrinking leaf that is a whole axis wherever it occurs, without what only a table that is looked
    up as well connects with the rest.

    Args:
        plan: sizes.
        outputs_too: whether a stream that callers see may be turned.
    """
    for leaf, size in plan.targets.items():
        if size == leaf.size or leaf in plan.matched or not _is_whole(plan, leaf):
            continue
        for spaces in _parts(plan, leaf):
            stream = _Candidate(plan, leaf, spaces).stream()
            # Without any norm it is the inside of a block.
            if (stream.folded or stream.fitted) and (outputs_too or not stream.is_output):
                yield stream


def _is_whole(plan: Plan, leaf: Dim) -> bool:
    return all(key(dim) == key(leaf) for axes in plan.axes.values() for dim in axes if leaf in leaves(dim))


def _parts(plan: Plan, leaf: Dim) -> list[frozenset[int]]:
    """Return the groups of spaces of a leaf that multiplications by vectors connect, but for heads.

    A head lies between the stream and a tied table: the table is contracted with it, and the table's rows lie in
    another group.
    """
    own = _spaces(plan, leaf)
    # A table's rows lie in one space, the input that it is contracted with in another: only the first may be turned
    # with the table.
    tables = [(place, space) for place, space in own.items() if place[0] in plan.looked_up]
    heads = {space for (table, axis, contracted), space in tables if contracted and (table, axis, False) in own}
    rows = {space for (_, _, contracted), space in tables if not contracted}
    return sorted((group for group in _groups(plan, own.values()) if not group & heads or group & rows), key=min)


def _spaces(plan: Plan, leaf: Dim) -> dict[Axis, int]:
    """Return the space of each axis of a weight that is the leaf."""
    return {
        (weight, axis, contracted): space
        for (weight, axis, contracted), space in plan.landmarks.spaces.items()
        if axis >= 0 and weight in plan.axes and key(plan.axes[weight][axis]) == key(leaf)
    }


def _groups(plan: Plan, spaces: Iterable[int]) -> set[frozenset[int]]:
    """Return the spaces in groups that multiplications by vectors connect."""
    linked: dict[int, set[int]] = {space: {space} for space in spaces}
    for scaling in plan.landmarks.scalings:
        if scaling.after in linked or scaling.before in linked:
            _link(linked, scaling.before, scaling.after)
    return {frozenset(group) for group in linked.values()}


def _link(linked: dict[int, set[int]], one: int, other: int) -> None:
    both = linked.setdefault(one, {one}) | linked.setdefault(other, {other})
    for space in both:
        linked[space] = both


class _Candidate:
    """A group of spaces of a leaf, and what lies in them."""

    def __init__(self, plan: Plan, leaf: Dim, spaces: frozenset[int]) -> None:
        landmarks = plan.landmarks
        self._plan, self._leaf, self._spaces = plan, leaf, spaces
        self._inside: dict[int, set[Axis]] = defaultdict(set)
        for place, space in landmarks.spaces.items():
            self._inside[space].add(place)
        self._outputs = {space for axes in landmarks.outputs for space in axes} & spaces
        self._scalings = list(dict.fromkeys(each for each in landmarks.scalings if each.after in spaces))
        self._vectors = {name for each in self._scalings for name in (each.vector, each.bias)}

    def stream(self) -> Stream:
        """Return the stream; `centred` is not known yet."""
        folded = tuple(filter(self._is_folded, self._scalings))
        readers = {
            (weight, axis): each
            for each in folded
            for weight, axis, contracted in self._inside[each.after]
            if contracted
        }
        axes = self._axes()
        rows = {weight for weight, _, contracted in axes if not contracted and weight in self._plan.looked_up}
        return Stream(
            self._leaf,
            self._spaces,
            False,
            frozenset((weight, axis) for weight, axis, _ in axes),
            folded,
            tuple(each for each in self._scalings if each not in folded),
            readers,
            frozenset(weight for weight, _ in readers) & rows,
            self._contracted_elsewhere(rows),
            bool(self._outputs),
        )

    def _is_folded(self, scaling: Scaling) -> bool:
        """Return whether only matrices take the result of a multiplication, whose vector has no other use."""
        return (
            scaling.after not in self._outputs
            and all(scaling.after != each.before for each in self._scalings)
            and all(contracted or name in self._vectors for name, _, contracted in self._inside[scaling.after])
            and sum(other.vector == scaling.vector for other in self._scalings) == 1
        )

    def _axes(self) -> set[Axis]:
        """Return every axis of a weight along the stream but for vectors, and whether it is contracted with it."""
        found = (place for space in self._spaces for place in self._inside[space])
        return {place for place in found if place[0] not in self._vectors}

    def _contracted_elsewhere(self, tables: Collection[str]) -> frozenset[str]:
        return frozenset(
            weight
            for (weight, _, contracted), space in self._plan.landmarks.spaces.items()
            if contracted and weight in tables and space not in self._spaces
        )
