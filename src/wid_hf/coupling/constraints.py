"""Size constraints: each says how many indices of one of the teacher's dimensions the student has.

Takes constraints, gives the student's size of every leaf, or every contradiction that was found. Knows nothing of
weights or traces; `comparison` collects the constraints, `plan` solves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from .dims import Dim, children_of, describe, find, key, leaves


@dataclass(frozen=True)
class SizeConstraint:
    """The student has `size` indices of `dim`; `place` says in words where this constraint comes from."""

    dim: Dim
    size: int
    place: str


class SizeSolver:
    """Propagates constraints from trees to their leaves until nothing new follows.

    Attributes:
        targets: the student's size of each leaf that is decided.
        problems: every contradiction, in words, after the problems that were given.
    """

    def __init__(self, constraints: Iterable[SizeConstraint], problems: Iterable[str] = ()) -> None:
        self.targets: dict[Dim, int] = {}
        self.problems = list(problems)
        self._places: dict[Dim, str] = {}
        self._waiting = list(constraints)

    def solve(self) -> None:
        """Use constraints until a round decides nothing new; a constraint with several unknowns waits."""
        while self._waiting:
            left = [constraint for constraint in self._waiting if not self._use(constraint)]
            if len(left) == len(self._waiting):
                break
            self._waiting = left

    def require_all(self, needed: Iterable[Dim]) -> None:
        """Leave each undecided leaf of `needed` at the teacher's size; a constraint that this breaks is a problem."""
        for leaf in needed:
            self.targets.setdefault(leaf, leaf.size)
        self.problems += [
            f"{waiting.place}: {describe(waiting.dim)} can become {waiting.size} in several ways. Give "
            "num_attention_heads, num_key_value_heads or head_dim as well"
            for waiting in self._waiting
            if self._size(waiting.dim) != waiting.size
        ]

    def _use(self, given: SizeConstraint) -> bool:
        """Return whether a constraint is used up: it decided a leaf, was checked, or is a problem."""
        dim = find(given.dim)
        if dim.size == 1 or given.size == dim.size == 0:
            return True
        if dim.is_leaf:
            self._decide(dim, given)
            return True
        unknown = [child for child in children_of(dim) if self._size(child) is None]
        decided = [child for child in children_of(dim) if child not in unknown]
        if not unknown:
            self._check(dim, given)
            return True
        return (self._use_product if dim.factors else self._use_sum)(given, unknown, decided)

    def _use_product(self, given: SizeConstraint, unknown: list[Dim], decided: list[Dim]) -> bool:
        if len(unknown) > 1:
            return False
        rest = prod(self._size(child) or 0 for child in decided)
        if not rest or given.size % rest:
            self.problems.append(f"{given.place}: {given.size} is not a multiple of {rest}{_because(decided)}")
            return True
        return self._use(replace(given, dim=unknown[0], size=given.size // rest))

    def _use_sum(self, given: SizeConstraint, unknown: list[Dim], decided: list[Dim]) -> bool:
        """Divide what the decided parts leave evenly among the unknown parts, if these are one dimension."""
        if len({key(child) for child in unknown}) > 1:
            return False
        left = given.size - sum(self._size(child) or 0 for child in decided)
        share, remainder = divmod(left, len(unknown))
        if remainder or share <= 0:
            parts = f"{describe(given.dim)}{_because(decided)}"
            self.problems.append(f"{given.place}: {given.size} cannot be split evenly across {parts}")
            return True
        return self._use(replace(given, dim=unknown[0], size=share))

    def _decide(self, leaf: Dim, given: SizeConstraint) -> None:
        size, place = given.size, given.place
        decided = self.targets.get(leaf)
        if decided is None:
            if size != leaf.size and leaf.frozen is not None:
                self.problems.append(f"{place}: {leaf.size} cannot become {size}, because it {leaf.frozen}")
            elif size > leaf.size:
                self.problems.append(f"{place}: {size} is wider than the teacher's {leaf.size}")
            else:
                self.targets[leaf], self._places[leaf] = size, place
        elif decided != size:
            self.problems.append(
                f"conflicting sizes: {self._places[leaf]} requires {decided}, {place} requires {size}, but both axes "
                f"are one coupled dimension of {leaf.size}. Request the same size for both"
            )

    def _check(self, dim: Dim, given: SizeConstraint) -> None:
        size = self._size(dim)
        if size != given.size:
            others = sorted({self._places[leaf] for leaf in leaves(dim) if leaf in self._places})
            makers = f" by {', '.join(others)}" if others else ""
            self.problems.append(
                f"{given.place} is fixed at {size}{makers} and cannot become {given.size}{_because([dim])}"
            )

    def _size(self, dim: Dim) -> int | None:
        """Return the student's size of `dim`, None as long as a leaf below it is undecided."""
        dim = find(dim)
        if dim.is_leaf:
            return dim.size if dim.frozen is not None or dim.size == 1 else self.targets.get(dim)
        sizes: list[int] = []
        for child in children_of(dim):
            if (size := self._size(child)) is None:
                return None
            sizes.append(size)
        return prod(sizes) if dim.factors else sum(sizes)


def _because(dims: Iterable[Dim]) -> str:
    """Return why the largest frozen leaf of `dims` is frozen, or "" where none is."""
    frozen = [leaf for dim in dims for leaf in leaves(dim) if leaf.frozen is not None and leaf.size > 1]
    largest = max(frozen, key=lambda leaf: leaf.size, default=None)
    if largest is None:
        return ""
    return f": {largest.size} of its entries cannot shrink, because this part {largest.frozen}"
