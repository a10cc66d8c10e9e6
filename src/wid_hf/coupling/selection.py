"""Flat index lists of whole axes from the index sets of their leaves.

Takes a tree and one index set per leaf, gives the kept flat indices of an axis. Called by `verify` (all
indices, permuted) and by `compaction` (some indices).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .dims import Dim, factors_of, find, parts_of
from .plan import Plan

IndexSets = Mapping[Dim, Tensor]
"""For each leaf `(k,)` kept indices, or `(n_outer, k)` where they are chosen for each index of the leaf around it.

A leaf without an entry keeps all its indices.
"""


def axis_indices(plan: Plan, dim: Dim, sets: IndexSets) -> list[int]:
    """Return the flat indices of the axis `dim` that `sets` keep, in the student's order."""
    return _indices(plan, dim, sets, {})


def _indices(plan: Plan, dim: Dim, sets: IndexSets, chosen: dict[Dim, int]) -> list[int]:
    dim = find(dim)
    if dim.parts:
        kept, offset = [], 0
        for part in parts_of(dim):
            kept += [offset + index for index in _indices(plan, part, sets, chosen)]
            offset += part.size
        return kept
    if dim.factors:
        return _product_indices(plan, factors_of(dim), sets, chosen)
    if dim not in sets:
        return list(range(dim.size))
    indices = sets[dim]
    row = indices[chosen[plan.under[dim]]] if indices.ndim == 2 else indices
    return [int(index) for index in row]


def _product_indices(plan: Plan, factors: list[Dim], sets: IndexSets, chosen: dict[Dim, int]) -> list[int]:
    outer, *inner = factors
    outer_indices = _indices(plan, outer, sets, chosen)
    if not inner:
        return outer_indices
    width = 1
    for factor in inner:
        width *= factor.size
    return [
        index * width + below
        for index in outer_indices
        for below in _product_indices(plan, inner, sets, {**chosen, find(outer): index})
    ]
