"""Which indices of which weights must shrink together, and to what size.

Takes the teacher's `Trace` and the student's shapes, gives a `Plan` or refuses with every contradiction
found. `planning`, `layers` and `calibration` read the plan; nothing changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from ..errors import PlanError
from .carrier import Carrier
from .comparison import (
    Shapes,
    matched_indices,
    mismatched_weights,
    scale_factors,
    step_constraints,
    table_constraints,
    weight_constraints,
)
from .constraints import SizeSolver
from .dims import Dim, Key, Reason, children_of, describe, factors_of, find, key, leaves, parts_of
from .landmark_record import Landmarks
from .trace import Dims, Trace
from .weight_inputs import WeightInput

TITLES = ("coupled dimension", "members", "teacher", "student", "why it is frozen")  # of `Plan.rows`
SAME = "same"  # in the column "student": not narrower
SHOWN = 6  # contradictions listed in a refusal; the rest usually follow from them


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
    """How a student's weights relate to the teacher's, for each coupled dimension.

    Attributes:
        axes: for each weight, the tree of each of its axes.
        targets: for each leaf, how many of its indices the student keeps.
        under: for each leaf that occurs only inside one other (width inside heads), that other leaf. Indices of
            the inner one may be chosen separately for each index of the outer one.
        scales: factors by which the student's weights must be multiplied at the start, because the
            student's own code multiplies by another number than the teacher's (attention scale).
        unfolded: differing numbers that no weight can take over, in words.
        tables: embedding tables whose rows are summed: they share one column compactor.
        weight_inputs: every product of a tensor with a weight, in the order of the forward.
        looked_up: tables whose rows are taken by number.
        matched: for each leaf that a table computed from the config is added to (sinusoidal positions), the
            indices whose entries are nearest to the student's own table, in its order. Every start keeps these.
        landmarks: where forwards of teacher and student can be compared, and which tensors share a space.
        settled: how heads and other sizes changed, and why; empty where the request left nothing open.
        offered: what else the teacher's class allows, and its price; empty if nothing.
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
    landmarks: Landmarks = field(default_factory=Landmarks)
    settled: str = ""
    offered: str = ""

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

    def dim_of(self, weight_input: WeightInput) -> Dim:
        """Return the dimension of the axis along which the weight is contracted with its input."""
        return self.axes[weight_input.weight][weight_input.axis]

    @property
    def fitted(self) -> tuple[int, ...]:
        """Numbers of the weight inputs to which the weight's columns may be fitted.

        The axis shrinks, and the weight is a matrix that is not also looked up: the rows of such a table (a tied
        decoder) are outputs along the axis that it contracts.
        """
        contracted: dict[str, set[int]] = {}
        for given in self.weight_inputs:
            contracted.setdefault(given.weight, set()).add(given.axis)
        return tuple(
            at
            for at, given in enumerate(self.weight_inputs)
            if self.size(dim := self.dim_of(given)) < dim.size
            and sum(other.size > 1 for other in self.axes[given.weight]) > 1
            and given.weight not in self.looked_up
            and len(contracted[given.weight]) == 1
        )

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """Every coupled dimension except those of size 1, in checkpoint order."""
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
        """Return a row of texts for each coupled dimension, under `TITLES`.

        Dimensions that differ only in layer numbers share a row. One that does not shrink has "same" for the student.
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
        """What was decided about heads, what the start does beside selecting indices, and what else is offered."""
        folded = [f"`{c.parameter}` starts scaled by {factor:.4g}" for c, factor in self.scales.items()]
        return (*filter(None, [self.settled]), *folded, *self.unfolded, *filter(None, [self.offered]))

    def __str__(self) -> str:
        """Return rows and notes as text, in aligned columns."""
        rows = [TITLES, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def __repr__(self) -> str:
        """Return one line: the whole plan of a deep model fills pages."""
        return f"Plan({len(self.couplings)} coupled dimensions of {len(self.axes)} weights)"


def make_plan(teacher: Trace, shapes: Shapes, student: Trace | None = None) -> Plan:
    """Find the student's size of every leaf, or refuse.

    Every weight gives one size constraint per axis: the teacher's tree has the student's size. A trace of the
    student adds one per dimension of every tensor that both forwards computed by the same operations; these decide
    how a size divides into heads and widths.

    Args:
        teacher: trace of the teacher.
        shapes: for each weight, the student's shape.
        student: trace of the student. Without it, leaves that weights alone cannot decide stay at the teacher's
            size: enough to find contradictions before the student is allocated.

    Raises:
        PlanError: names every weight that would need two sizes at once, would have to widen, or whose
            frozen dimension would have to shrink.
    """
    in_weights = {leaf for axes in teacher.weight_dims.values() for dim in axes for leaf in leaves(dim)}
    constraints = [*weight_constraints(teacher, shapes)]
    if student is not None:
        constraints += step_constraints(teacher, student, in_weights)
        constraints += table_constraints(teacher, student, in_weights)
    solver = SizeSolver(constraints, mismatched_weights(teacher, shapes))
    solver.solve()
    if student is not None and not solver.problems:
        solver.require_all(in_weights)
    if solver.problems:
        raise PlanError(_listed(solver.problems))
    scales, unfolded = scale_factors(teacher, student) if student is not None else ({}, ())
    return Plan(
        axes=teacher.weight_dims,
        targets=solver.targets,
        under=nesting(teacher.weight_dims.values()),
        scales=scales,
        unfolded=unfolded,
        tables=tuple(frozenset(group) for group in teacher.tables),
        weight_inputs=tuple(teacher.weight_inputs),
        looked_up=frozenset(teacher.looked_up_tables),
        matched=matched_indices(teacher, student, solver.targets) if student is not None else {},
        landmarks=teacher.landmarks,
    )


def _listed(problems: Iterable[str]) -> str:
    """Return the text of a refusal: each problem once, on a line, at most `SHOWN` of them."""
    once = list(dict.fromkeys(problems))
    more = [f"- and {len(once) - SHOWN} more like these"] if len(once) > SHOWN else []
    return "\n".join([*(f"- {problem}" for problem in once[:SHOWN]), *more])


def nesting(weights: Iterable[Dims]) -> dict[Dim, Dim]:
    """Return for each leaf that occurs only inside one other leaf that outer leaf, the nearest if several."""
    common: dict[Dim, list[Dim]] = {}
    for axes in weights:
        for dim in axes:
            for leaf, outer in _occurrences(dim, []):
                common[leaf] = [o for o in common.get(leaf, outer) if o in outer]
    return {leaf: outer[-1] for leaf, outer in common.items() if outer}


def _occurrences(dim: Dim, outer: list[Dim]) -> Iterator[tuple[Dim, list[Dim]]]:
    """Yield each leaf below `dim` with the leaves around it, the outermost first."""
    dim = find(dim)
    if dim.is_leaf:
        yield dim, outer
    around = list(outer)
    for child in children_of(dim):
        yield from _occurrences(child, around)
        if dim.factors and find(child).is_leaf:
            around = [*around, find(child)]


def _alike(couplings: Iterable[Coupling]) -> list[tuple[list[str], int, int, Coupling]]:
    """Group couplings whose members differ in layer numbers only: (names, how many, members in all, one)."""
    groups: dict[tuple[object, ...], list[Coupling]] = {}
    for coupling in couplings:
        pattern = tuple(sorted({_pattern(member) for member in coupling.members}))
        cause = coupling.frozen and (coupling.frozen.operation, coupling.frozen.text)
        signature = (pattern[:4], coupling.structure, coupling.student_structure, cause)
        groups.setdefault(signature, []).append(coupling)
    rows = []
    for group in groups.values():
        names = [_pattern(coupling.members[0]) if len(group) > 1 else coupling.members[0] for coupling in group]
        rows.append((names, len(group), sum(len(coupling.members) for coupling in group), group[0]))
    return rows


def _pattern(member: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", member)
