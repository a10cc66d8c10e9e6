"""Which indices of which weights must shrink together, and to what size.

Takes the teacher's `Trace` and the student's shapes, gives a `Plan` or refuses with every contradiction
found. `student`, `compaction` and `calibration` read the plan; nothing changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from math import isclose, prod

import torch
from torch import Tensor

from ..errors import PlanError
from .carrier import Carrier
from .dims import Dim, Reason, describe, factors_of, find, leaves, parts_of
from .trace import Call, Dims, Step, Trace
from .weight_inputs import WeightInput

Key = tuple  # of leaf identities, nested like the tree
IN_MEMORY = {"aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default"}
SPELLINGS = dict.fromkeys(("aten._unsafe_view.default", "aten.reshape.default"), "aten.view.default")
TITLES = ("coupled dimension", "members", "teacher", "student", "why it is frozen")  # of `Plan.rows`
SAME = "same"  # in the column "student": not narrower
SHOWN = 6  # contradictions listed in a refusal; the rest follow from them as a rule


@dataclass(frozen=True)
class Coupling:
    """One coupled dimension: all axes of weights whose indices must be kept or dropped together.

    Attributes:
        members: `weight[axis]` for each axis, in checkpoint order.
        teacher_size: number of indices in the teacher.
        student_size: number of indices in the student.
        structure: the teacher's structure in words, `12 x 64` (heads x width) or `768 + 768 + 768`.
        student_structure: the same for the student.
        frozen: why it cannot shrink, or None. Where only a factor or part is frozen, this is its reason.
    """

    members: tuple[str, ...]
    teacher_size: int
    student_size: int
    structure: str
    student_structure: str
    frozen: Reason | None


@dataclass(frozen=True, repr=False)
class Plan:
    """How a student's weights relate to the teacher's, dimension by dimension.

    Attributes:
        axes: for each weight, the tree of each of its axes.
        targets: for each leaf, how many of its indices the student keeps.
        under: for each leaf that stands only inside one other (width inside heads), that other leaf: its
            indices may then be chosen anew for each index of the outer one.
        scales: factors by which the student's weights must be multiplied at the start, because the
            student's own code multiplies by another number than the teacher's (attention scale).
        unfolded: differences of that kind that no weight can take over, in words.
        tables: embedding tables whose rows are summed: they share one column compactor.
        weight_inputs: every product of a tensor with a weight, in the order of the forward.
        looked_up: tables whose rows are taken by number.
        matched: for each leaf that a table computed from the config is added to (sinusoidal positions), the
            indices whose entries are nearest to the student's own table, in its order. Every start keeps these.
        settled: what becomes of heads, and why; empty where the request left nothing open.
    """

    axes: Mapping[str, Dims]
    targets: Mapping[Dim, int]
    under: Mapping[Dim, Dim]
    scales: Mapping[Carrier, float] = field(default_factory=dict)
    unfolded: tuple[str, ...] = ()
    tables: tuple[frozenset[str], ...] = ()
    weight_inputs: tuple[WeightInput, ...] = ()
    looked_up: frozenset[str] = frozenset()
    matched: Mapping[Dim, Tensor] = field(default_factory=dict)
    settled: str = ""

    def size(self, dim: Dim) -> int:
        """Return the student's size of `dim`."""
        dim = find(dim)
        if dim.factors:
            return prod(self.size(factor) for factor in factors_of(dim))
        if dim.parts:
            return sum(self.size(part) for part in parts_of(dim))
        return self.targets.get(dim, dim.size)

    def shape(self, weight: str) -> tuple[int, ...]:
        """Return the shape of `weight` in the student."""
        return tuple(self.size(dim) for dim in self.axes[weight])

    @property
    def fitted(self) -> tuple[int, ...]:
        """Numbers of the reads whose weight's columns may be fitted to what is read.

        The axis shrinks, and the weight is a matrix that is used in no other way: a table that is also looked up
        (a tied decoder) writes along the very axis that it reads.
        """
        axes_read: dict[str, set[int]] = {}
        for read in self.weight_inputs:
            axes_read.setdefault(read.weight, set()).add(read.axis)
        return tuple(
            at
            for at, read in enumerate(self.weight_inputs)
            if self.size(dim := self.axes[read.weight][read.axis]) < dim.size
            and sum(other.size > 1 for other in self.axes[read.weight]) > 1
            and read.weight not in self.looked_up
            and len(axes_read[read.weight]) == 1
        )

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """Every coupled dimension, those of size 1 left out, in checkpoint order."""
        groups: dict[Key, list[tuple[str, Dim]]] = {}
        for weight, axes in self.axes.items():
            for axis, dim in enumerate(axes):
                if dim.size > 1:
                    groups.setdefault(key(dim), []).append((f"{weight}[{axis}]", dim))
        return tuple(
            Coupling(
                members=tuple(name for name, _ in group),
                teacher_size=group[0][1].size,
                student_size=self.size(group[0][1]),
                structure=describe(group[0][1]),
                student_structure=describe(group[0][1], self.size),
                frozen=next((leaf.frozen for leaf in leaves(group[0][1]) if leaf.frozen), None),
            )
            for group in groups.values()
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of texts for each coupled dimension, under `TITLES`; those alike but for layer numbers are one.

        A dimension that does not shrink is "same" in the student's column.
        """
        rows: list[tuple[str, ...]] = []
        for names, count, members, coupling in _alike(self.couplings):
            whole, small = coupling.structure, coupling.student_structure
            changed = coupling.student_size != coupling.teacher_size
            row = (
                names[0] + (f"  (x {count})" if count > 1 else ""),
                str(members),
                whole + (f" = {coupling.teacher_size}" if not whole.isdigit() else ""),
                (small + (f" = {coupling.student_size}" if not small.isdigit() else "")) if changed else SAME,
                str(coupling.frozen) if coupling.frozen else "",
            )
            rows.append(row)
        return rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What the sizes came to mean, and what the start does beside selecting indices, such as folding numbers."""
        folded = [f"`{c.parameter}` starts scaled by {factor:.4g}" for c, factor in self.scales.items()]
        return (*filter(None, [self.settled]), *folded, *self.unfolded)

    def __str__(self) -> str:
        """Return rows and notes as text, in columns as wide as what they hold."""
        rows = [TITLES, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        """Return a line: a plan of a deep model fills pages."""
        return f"Plan({len(self.couplings)} coupled dimensions of {len(self.axes)} weights)"


def key(dim: Dim) -> Key:
    """Return the identity of a tree: equal for two axes whose indices are the same thing."""
    dim = find(dim)
    if dim.factors:
        return ("x", *(key(factor) for factor in factors_of(dim)))
    if dim.parts:
        return ("+", *(key(part) for part in parts_of(dim)))
    return (id(dim),)


def make_plan(teacher: Trace, shapes: Mapping[str, tuple[int, ...]], student: Trace | None = None) -> Plan:
    """Solve for the student's size of every leaf, or refuse.

    Every weight gives one equation per axis (teacher's tree = student's size). A trace of the student adds
    one per dimension of every tensor that both forwards computed by the same operations; these tell heads
    from widths.

    Args:
        teacher: trace of the teacher.
        shapes: for each weight, the student's shape.
        student: trace of the student. Without it, what weights alone cannot decide is left at the
            teacher's size: enough to find contradictions before the student is allocated.

    Raises:
        PlanError: names every weight that would need two sizes at once, would have to widen, or whose
            frozen dimension would have to shrink.
    """
    solver = _Solver()
    for weight, axes in teacher.weight_dims.items():
        if weight not in shapes:
            solver.problems.append(f"`{weight}` of the teacher has no counterpart in the student")
        elif len(shapes[weight]) != len(axes):
            solver.problems.append(
                f"`{weight}` has {len(axes)} axes in the teacher, {len(shapes[weight])} in the student"
            )
        else:
            for axis, (dim, size) in enumerate(zip(axes, shapes[weight], strict=True)):
                solver.equations.append((dim, size, f"`{weight}` axis {axis}"))
    extra = [name for name in shapes if name not in teacher.weight_dims]
    if extra:
        solver.problems.append(f"the student has weights that the teacher lacks: {', '.join(map(repr, extra[:5]))}")
    in_weights = {leaf for axes in teacher.weight_dims.values() for dim in axes for leaf in leaves(dim)}
    if student is not None:
        solver.equations += _shared_steps(teacher, student, in_weights)
        solver.equations += _shared_tables(teacher, student, in_weights)
    solver.solve()
    if student is not None and not solver.problems:
        solver.require_all(in_weights)
    if solver.problems:
        problems = list(dict.fromkeys(solver.problems))
        more = [f"- and {len(problems) - SHOWN} more of the kind"] if len(problems) > SHOWN else []
        raise PlanError("\n".join([*(f"- {problem}" for problem in problems[:SHOWN]), *more]))
    scales, unfolded = _scales(teacher, student) if student is not None else ({}, ())
    return Plan(
        axes=teacher.weight_dims,
        targets=solver.targets,
        under=nesting(teacher.weight_dims.values()),
        scales=scales,
        unfolded=unfolded,
        tables=tuple(frozenset(group) for group in teacher.tables),
        weight_inputs=tuple(teacher.weight_inputs),
        looked_up=frozenset(teacher.looked_up_tables),
        matched=_matched(teacher, student, solver.targets) if student is not None else {},
    )


class _Solver:
    """Propagates equations `tree = size` until nothing new follows."""

    def __init__(self) -> None:
        self.targets: dict[Dim, int] = {}
        self.places: dict[Dim, str] = {}
        self.problems: list[str] = []
        self.equations: list[tuple[Dim, int, str]] = []

    def solve(self) -> None:
        """Solve until a round decides nothing new; equations with several unknowns wait."""
        waiting = self.equations
        while waiting:
            left = [equation for equation in waiting if not self._apply(*equation)]
            if len(left) == len(waiting):
                break
            waiting = left
        self.equations = waiting

    def require_all(self, wanted: Iterable[Dim]) -> None:
        """Undecided leaves keep the teacher's size if that agrees with every equation; else it is a problem."""
        for leaf in wanted:
            self.targets.setdefault(leaf, leaf.size)
        for dim, size, place in self.equations:
            if self._value(dim) != size:
                self.problems.append(
                    f"{place}: {describe(dim)} can become {size} in several ways. State num_attention_heads, "
                    "num_key_value_heads or head_dim as well"
                )

    def _apply(self, dim: Dim, size: int, place: str) -> bool:
        """Use one equation; return whether it is used up."""
        dim = find(dim)
        if dim.size == 1 or size == dim.size == 0:
            return True
        if dim.is_leaf:
            self._decide(dim, size, place)
            return True
        children = factors_of(dim) if dim.factors else parts_of(dim)
        unknown = [child for child in children if self._value(child) is None]
        decided = [child for child in children if child not in unknown]
        known = [self._value(child) or 0 for child in decided]
        if not unknown:
            self._check(dim, size, place)
            return True
        if dim.factors:
            if len(unknown) > 1:
                return False
            rest = prod(known)
            if not rest or size % rest:
                self.problems.append(f"{place}: {size} is not a multiple of {rest}{_because(decided)}")
                return True
            return self._apply(unknown[0], size // rest, place)
        if len({key(child) for child in unknown}) > 1:
            return False
        share, remainder = divmod(size - sum(known), len(unknown))
        if remainder or share <= 0:
            self.problems.append(f"{place}: {size} cannot be split evenly across {describe(dim)}{_because(decided)}")
            return True
        return self._apply(unknown[0], share, place)

    def _decide(self, leaf: Dim, size: int, place: str) -> None:
        decided = self.targets.get(leaf)
        if decided is None:
            if size != leaf.size and leaf.frozen is not None:
                self.problems.append(f"{place}: {leaf.size} cannot become {size}, because it {leaf.frozen}")
            elif size > leaf.size:
                self.problems.append(f"{place}: {size} is wider than the teacher's {leaf.size}")
            else:
                self.targets[leaf], self.places[leaf] = size, place
        elif decided != size:
            self.problems.append(
                f"conflicting sizes: {self.places[leaf]} requires {decided}, {place} requires {size}, but both axes "
                f"are one coupled dimension of {leaf.size}. Request the same size for both"
            )

    def _check(self, dim: Dim, size: int, place: str) -> None:
        value = self._value(dim)
        if value != size:
            others = sorted({self.places[leaf] for leaf in leaves(dim) if leaf in self.places})
            makers = f"is fixed at {value} by {', '.join(others)}" if others else f"is fixed at {value}"
            self.problems.append(f"{place} {makers} and cannot become {size}{_because([dim])}")

    def _value(self, dim: Dim) -> int | None:
        dim = find(dim)
        if dim.is_leaf:
            return dim.size if dim.frozen is not None or dim.size == 1 else self.targets.get(dim)
        children = factors_of(dim) if dim.factors else parts_of(dim)
        values = [self._value(child) for child in children]
        if any(value is None for value in values):
            return None
        return prod(values) if dim.factors else sum(values)  # type: ignore[arg-type]


def _because(dims: Iterable[Dim]) -> str:
    """Say what froze the largest frozen leaf of `dims`, or nothing where none is."""
    frozen = [leaf for dim in dims for leaf in leaves(dim) if leaf.frozen is not None and leaf.size > 1]
    largest = max(frozen, key=lambda leaf: leaf.size, default=None)
    if largest is None:
        return ""
    return f": {largest.size} of its entries cannot shrink, because this part {largest.frozen}"


def _shared_steps(teacher: Trace, student: Trace, wanted: set[Dim]) -> Iterator[tuple[Dim, int, str]]:
    """Yield an equation for each dimension that holds a weight's leaf, as far as both ran the same operations."""
    for call, mine, theirs in _same_steps(teacher, student):
        for dims, again in zip(mine.dims, theirs.dims, strict=False):
            for dim, other in zip(dims, again, strict=False):
                if any(leaf in wanted for leaf in leaves(dim)):
                    yield dim, other.size, f"`{call[0]}` ({mine.operation})"


def _same_steps(teacher: Trace, student: Trace) -> Iterator[tuple[Call, Step, Step]]:
    """Yield what both forwards did alike, call by call.

    Sizes decide some of torch's paths. A call of a module therefore counts from its start up to the first
    operation that differs, and from its end back to the last one; operations that only rearrange memory
    do not count.
    """
    for call, steps in teacher.steps.items():
        mine = [step for step in steps if step.operation not in IN_MEMORY]
        theirs = [step for step in student.steps.get(call, []) if step.operation not in IN_MEMORY]
        alike = list(takewhile(_alike_steps, zip(mine, theirs, strict=False)))
        rest = min(len(mine), len(theirs)) - len(alike)
        backwards = zip(mine[::-1][:rest], theirs[::-1][:rest], strict=True)
        for pair in (*alike, *takewhile(_alike_steps, backwards)):
            yield (call, *pair)


def _alike_steps(pair: tuple[Step, Step]) -> bool:
    mine, theirs = pair
    same = SPELLINGS.get(mine.operation, mine.operation) == SPELLINGS.get(theirs.operation, theirs.operation)
    return same and list(map(len, mine.dims)) == list(map(len, theirs.dims))


def _shared_tables(teacher: Trace, student: Trace, wanted: set[Dim]) -> Iterator[tuple[Dim, int, str]]:
    """Yield an equation for each axis of a computed table that holds a weight's leaf."""
    for name, dims in teacher.computed_dims.items():
        for axis, (dim, other) in enumerate(zip(dims, student.computed_dims.get(name, ()), strict=False)):
            if any(leaf in wanted for leaf in leaves(dim)):
                yield dim, other.size, f"buffer `{name}` axis {axis}"


def _matched(teacher: Trace, student: Trace, targets: Mapping[Dim, int]) -> dict[Dim, Tensor]:
    """Return for each leaf of a computed table the teacher's indices nearest to the student's, none twice."""
    found: dict[Dim, Tensor] = {}
    for name, table in teacher.computed.items():
        own = student.computed.get(name)
        for axis, dim in enumerate(map(find, teacher.computed_dims[name])):
            if own is None or dim in found or not dim.is_leaf or targets.get(dim, dim.size) == dim.size:
                continue
            theirs, mine = table.movedim(axis, 0).flatten(1), own.movedim(axis, 0).flatten(1)
            if theirs.shape[1] != mine.shape[1] or mine.shape[0] != targets[dim]:
                continue
            distance = torch.cdist(mine.double(), theirs.double())
            chosen = torch.empty(len(mine), dtype=torch.long)
            for row in range(len(mine)):
                chosen[row] = distance[row].argmin()
                distance[:, chosen[row]] = torch.inf
            found[dim] = chosen
    return found


def _scales(teacher: Trace, student: Trace) -> tuple[dict[Carrier, float], tuple[str, ...]]:
    """Return the factors that the student's weights must take over, and those that no weight can."""
    per_call: dict[Carrier, dict[tuple[str, int], float]] = {}
    unfolded = []
    for call, mine, theirs in _same_steps(teacher, student):
        if not mine.factor or not theirs.factor or isclose(mine.factor, theirs.factor, rel_tol=1e-6):
            continue
        ratio = mine.factor / theirs.factor
        if mine.carrier is None:
            unfolded.append(
                f"not folded: `{call[0]}` multiplies by {theirs.factor:.4g}, the teacher by {mine.factor:.4g}"
            )
            continue
        carrier = teacher.carried_by.get(mine.carrier, mine.carrier)
        calls = per_call.setdefault(carrier, {})
        calls[call] = calls.get(call, 1.0) * ratio
    scales = {carrier: next(iter(calls.values())) for carrier, calls in per_call.items()}
    return scales, tuple(dict.fromkeys(unfolded))


def nesting(weights: Iterable[Dims]) -> dict[Dim, Dim]:
    """Return for each leaf that occurs only inside one other leaf that outer leaf, the nearest if several."""
    common: dict[Dim, list[Dim]] = {}
    for axes in weights:
        for dim in axes:
            for leaf, outer in _occurrences(dim, []):
                common[leaf] = [o for o in common.get(leaf, outer) if o in outer]
    return {leaf: outer[-1] for leaf, outer in common.items() if outer}


def _occurrences(dim: Dim, outer: list[Dim]) -> Iterator[tuple[Dim, list[Dim]]]:
    dim = find(dim)
    if dim.is_leaf:
        yield dim, outer
    for part in parts_of(dim) if dim.parts else []:
        yield from _occurrences(part, outer)
    inside = list(outer)
    for factor in factors_of(dim) if dim.factors else []:
        yield from _occurrences(factor, inside)
        if find(factor).is_leaf:
            inside = [*inside, find(factor)]


def _alike(couplings: Iterable[Coupling]) -> list[tuple[list[str], int, int, Coupling]]:
    """Group couplings whose members differ in layer numbers only: (names, how many, members in all, one)."""
    groups: dict[tuple[object, ...], list[Coupling]] = {}
    for coupling in couplings:
        pattern = tuple(sorted({_pattern(member) for member in coupling.members}))
        cause = coupling.frozen and (coupling.frozen.operation, coupling.frozen.text)
        signature = (pattern[:4], coupling.structure, coupling.student_structure, cause)
        groups.setdefault(signature, []).append(coupling)
    return [
        ([_pattern(c.members[0]) if len(group) > 1 else c.members[0] for c in group],
         len(group), sum(len(c.members) for c in group), group[0])
        for group in groups.values()
        for c in group[:1]
    ]  # fmt: skip


def _pattern(member: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", member)
