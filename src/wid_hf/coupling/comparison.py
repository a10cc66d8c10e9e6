"""What the teacher and the student have in common: weights, operations that both ran, tables that both compute.

Takes both traces, or the student's shapes in place of its trace; gives size constraints, the factors by which the
student's weights must be multiplied, and the indices of computed tables. `plan` puts them together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import takewhile
from math import isclose

import torch
from torch import Tensor

from ..arithmetic import in_float64
from .carrier import Carrier
from .constraints import SizeConstraint
from .dims import Dim, find, leaves
from .trace import Call, Step, Trace

Shapes = Mapping[str, tuple[int, ...]]
IN_MEMORY = {"aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default"}
SPELLINGS = dict.fromkeys(("aten._unsafe_view.default", "aten.reshape.default"), "aten.view.default")


def mismatched_weights(teacher: Trace, shapes: Shapes) -> list[str]:
    """Return a sentence for each weight that one model lacks, or that has another number of axes in it."""
    problems = []
    for weight, axes in teacher.weight_dims.items():
        if weight not in shapes:
            problems.append(f"`{weight}` of the teacher has no counterpart in the student")
        elif len(shapes[weight]) != len(axes):
            problems.append(f"`{weight}` has {len(axes)} axes in the teacher, {len(shapes[weight])} in the student")
    extra = [name for name in shapes if name not in teacher.weight_dims]
    if extra:
        problems.append(f"the student has weights that the teacher lacks: {', '.join(map(repr, extra[:5]))}")
    return problems


def weight_constraints(teacher: Trace, shapes: Shapes) -> Iterator[SizeConstraint]:
    """Yield one constraint for each axis of each weight that both models have."""
    for weight, axes in teacher.weight_dims.items():
        shape = shapes.get(weight, ())
        for axis, (dim, size) in enumerate(zip(axes, shape, strict=True) if len(shape) == len(axes) else ()):
            yield SizeConstraint(dim, size, f"`{weight}` axis {axis}")


def step_constraints(teacher: Trace, student: Trace, in_weights: Collection[Dim]) -> Iterator[SizeConstraint]:
    """Yield one constraint for each dimension of each operation that both ran, if a leaf of it is `in_weights`."""
    for call, step, own in shared_steps(teacher, student):
        for dims, again in zip(step.dims, own.dims, strict=False):
            for dim, other in zip(dims, again, strict=False):
                if any(leaf in in_weights for leaf in leaves(dim)):
                    yield SizeConstraint(dim, other.size, f"`{call[0]}` ({step.operation})")


def table_constraints(teacher: Trace, student: Trace, in_weights: Collection[Dim]) -> Iterator[SizeConstraint]:
    """Yield one constraint for each axis of a computed table, if a leaf of it is `in_weights`."""
    for name, dims in teacher.computed_dims.items():
        for axis, (dim, other) in enumerate(zip(dims, student.computed_dims.get(name, ()), strict=False)):
            if any(leaf in in_weights for leaf in leaves(dim)):
                yield SizeConstraint(dim, other.size, f"buffer `{name}` axis {axis}")


def shared_steps(teacher: Trace, student: Trace) -> Iterator[tuple[Call, Step, Step]]:
    """Yield the operations that both forwards ran, the teacher's first, call by call.

    Sizes decide some of torch's paths. A call of a module therefore counts from its start up to the first
    operation that differs, and from its end back to the last one; operations that only rearrange memory
    do not count.
    """
    for call, steps in teacher.steps.items():
        mine = [step for step in steps if step.operation not in IN_MEMORY]
        theirs = [step for step in student.steps.get(call, []) if step.operation not in IN_MEMORY]
        alike = list(takewhile(_alike, zip(mine, theirs, strict=False)))
        rest = min(len(mine), len(theirs)) - len(alike)
        backwards = zip(mine[::-1][:rest], theirs[::-1][:rest], strict=True)
        for pair in (*alike, *takewhile(_alike, backwards)):
            yield (call, *pair)


def _alike(pair: tuple[Step, Step]) -> bool:
    mine, theirs = pair
    same = SPELLINGS.get(mine.operation, mine.operation) == SPELLINGS.get(theirs.operation, theirs.operation)
    return same and list(map(len, mine.dims)) == list(map(len, theirs.dims))


def scale_factors(teacher: Trace, student: Trace) -> tuple[dict[Carrier, float], tuple[str, ...]]:
    """Return the factors by which weights must be multiplied, and a sentence for each that no weight can take over."""
    per_call: dict[Carrier, dict[Call, float]] = {}
    unfolded = []
    for call, mine, theirs in shared_steps(teacher, student):
        if not mine.factor or not theirs.factor or isclose(mine.factor, theirs.factor, rel_tol=1e-6):
            continue
        if mine.carrier is None:
            unfolded.append(
                f"not folded: `{call[0]}` multiplies by {theirs.factor:.4g}, the teacher by {mine.factor:.4g}"
            )
            continue
        carrier = teacher.carried_by.get(mine.carrier, mine.carrier)
        calls = per_call.setdefault(carrier, {})
        calls[call] = calls.get(call, 1.0) * (mine.factor / theirs.factor)
    scales = {carrier: next(iter(calls.values())) for carrier, calls in per_call.items()}
    return scales, tuple(dict.fromkeys(unfolded))


def matched_indices(teacher: Trace, student: Trace, targets: Mapping[Dim, int]) -> dict[Dim, Tensor]:
    """Return for each leaf of a computed table the teacher's indices whose entries are nearest to the student's.

    No index is taken twice, only leaves that shrink have an entry, and of several tables the first counts.
    """
    found: dict[Dim, Tensor] = {}
    for name, table in teacher.computed.items():
        own = student.computed.get(name)
        for axis, dim in enumerate(map(find, teacher.computed_dims[name])):
            if own is None or dim in found or not dim.is_leaf or targets.get(dim, dim.size) == dim.size:
                continue
            rows, wanted = table.movedim(axis, 0).flatten(1), own.movedim(axis, 0).flatten(1)
            if rows.shape[1] == wanted.shape[1] and len(wanted) == targets[dim]:
                found[dim] = _nearest_rows(rows, wanted)
    return found


def _nearest_rows(rows: Tensor, wanted: Tensor) -> Tensor:
    """Return for each of `wanted (k, m)` the nearest of `rows (n, m)` that is not taken yet, `(k,)`."""
    distance = torch.cdist(in_float64(wanted), in_float64(rows)).cpu()
    chosen = torch.empty(len(wanted), dtype=torch.long)
    for at in range(len(wanted)):
        chosen[at] = distance[at].argmin()
        distance[:, chosen[at]] = torch.inf
    return chosen
