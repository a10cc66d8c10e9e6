"""The landmarks of a model's forwards, in order, with the spaces of the tensors there.

Takes the operations that a trace observes; gives `Landmarks`, a part of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from .dims import Dim
from .landmarks import Key, Kind, LandmarkFinder, Sighting, Term, Vector
from .spaces import Axis, Node, SpaceTracker
from .weight_inputs import contraction


@dataclass(frozen=True)
class Landmark:
    """A place in a forward.

    Attributes:
        order: landmarks of one forward come in this order.
        kind: before the `"input"` of a weight is contracted with it; after a tensor was `"scaled"` by a vector (a
            norm's weight); after a `"sum"` of a weight's output and a tensor that other weights made (a residual).
        number: in the list of that kind: the plan's `weight_inputs`, or `scalings` or `sums` of `Landmarks`.
    """

    order: int
    kind: Kind
    number: int


@dataclass(frozen=True)
class Scaling:
    """One multiplication of a space by a vector: a norm with a weight, or the scale of a branch.

    Attributes:
        vector: the weight's name.
        offset: what the model adds to the weight: 1 for norms that multiply by `1 + weight`.
        bias: the vector that the same operation adds, or None.
        before: number of the space of the tensor that is scaled.
        after: of the result.
    """

    vector: str
    offset: float
    bias: str | None
    before: int
    after: int


@dataclass(frozen=True)
class Sum:
    """A residual sum.

    Attributes:
        terms: number of each weight input whose output is added, with the factor of that output.
        space: number of the space of the result.
    """

    terms: tuple[tuple[int, float], ...]
    space: int


@dataclass(frozen=True)
class Landmarks:
    """Where a forward can be compared with that of a narrower model.

    Attributes:
        places: every landmark by its key.
        scalings: in the order of the forwards.
        sums: in the order of the forwards.
        spaces: number of the space of each axis of each weight.
        outputs: for each output of each example the number of the space of each axis.
        streams: number of the space of the last axis of each `Example.streams` input, by example and name.
    """

    places: Mapping[Key, Landmark] = field(default_factory=dict)
    scalings: tuple[Scaling, ...] = ()
    sums: tuple[Sum, ...] = ()
    spaces: Mapping[Axis, int] = field(default_factory=dict)
    outputs: tuple[tuple[int, ...], ...] = ()
    streams: Mapping[tuple[int, str], int] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[Landmark]:
        """Return the landmarks of one kind, by number."""
        found = [each for each in self.places.values() if each.kind == kind]
        return sorted(found, key=lambda each: each.number)


class LandmarkRecord:
    """Collects landmarks while forwards are watched.

    Args:
        names: which tensors are weights.
        dims: gives the dimensions of a tensor.
        axes: see `SpaceTracker`.
    """

    def __init__(
        self,
        names: MutableMapping[Tensor, str],
        dims: Callable[[Tensor], Sequence[Dim]],
        axes: Callable[[Tensor], tuple[str, Sequence[int]] | None],
    ) -> None:
        self._finder = LandmarkFinder(names)
        self._tracker = SpaceTracker(dims, axes)
        self._places: dict[Key, Landmark] = {}
        # Nothing that is kept holds a tensor.
        self._scalings: list[tuple[Vector, str | None, Node, Node]] = []
        self._sums: list[tuple[tuple[Term, ...], Node]] = []
        self._outputs: list[list[Node]] = []
        self._streams: dict[tuple[int, str], Node] = {}

    def note(
        self,
        operation: OpOverload,
        args: Sequence[Any],
        out: Any,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        counts: bool,
    ) -> Sighting | None:
        """Follow one operation; return the input of a weight, if it contracts one.

        Args:
            operation: what ran.
            args: its positional arguments.
            out: its result.
            operands: the tensors among its arguments.
            results: the tensors in `out`.
            counts: whether forwards run the operation (and not only its decomposition).
        """
        product = contraction(operation, args)
        if not counts:
            self._tracker.note(operation, operands, results, product, None)
            return None
        seen = self._finder.before(operation, args)
        after = self._finder.after(operation, args, out)
        cut = self._tracker.note(operation, operands, results, product, after)
        if after is not None and after.key not in self._places:
            if cut is not None:
                self._add(after, len(self._scalings))
                assert after.vector is not None
                self._scalings.append((after.vector, after.bias, *cut))
            elif all(term.input in self._places for term in after.terms):
                self._add(after, len(self._sums))
                self._sums.append((after.terms, self._tracker.of(after.tensor)[after.axis]))
        return seen

    def add_input(self, seen: Sighting, number: int) -> None:
        """Record the input of a weight under its number in the plan."""
        self._add(seen, number)

    def note_outputs(self, outputs: Sequence[Tensor]) -> None:
        """Record the outputs of an example."""
        self._outputs += [list(self._tracker.of(tensor)) for tensor in outputs]

    def note_stream(self, example: int, name: str, stream: Tensor) -> None:
        """Record an input of an example that is the hidden states of another model."""
        self._streams[example, name] = self._tracker.of(stream)[-1]

    def landmarks(self) -> Landmarks:
        """Return what was seen so far."""
        number = self._tracker.number
        return Landmarks(
            dict(self._places),
            tuple(
                Scaling(vector.name, vector.offset, bias, number(before), number(after))
                for vector, bias, before, after in self._scalings
            ),
            tuple(
                Sum(tuple((self._places[term.input].number, term.factor) for term in terms), number(node))
                for terms, node in self._sums
            ),
            self._tracker.weights(),
            tuple(tuple(map(number, nodes)) for nodes in self._outputs),
            {place: number(node) for place, node in self._streams.items()},
        )

    def _add(self, seen: Sighting, number: int) -> None:
        self._places.setdefault(seen.key, Landmark(len(self._places), seen.key[0], number))
