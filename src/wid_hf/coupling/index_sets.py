"""From the leaves of an axis to the axis and back: indices, factors, sums.

Takes a tree and something for each leaf (an index set, factors), gives the same for the whole axis; or takes values of
an axis and gives their sums for each leaf. Called by `verify` (all indices, permuted), `layers`, `calibration`
and `progressive`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
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


def leaf_sums(plan: Plan, dim: Dim, values: Tensor) -> Iterable[tuple[Dim, Tensor]]:
    """Yield each leaf of an axis with `values (n,)` summed over all else, `(n_leaf,)` or `(n_outer, n_leaf)`."""
    dim = find(dim)
    if dim.parts:
        parts = parts_of(dim)
        for part, piece in zip(parts, values.split([part.size for part in parts]), strict=True):
            yield from leaf_sums(plan, part, piece)
        return
    factors = [find(factor) for factor in factors_of(dim)]
    grid = values.view([factor.size for factor in factors])
    for place, factor in enumerate(factors):
        others = [at for at in range(len(factors)) if at not in _places(plan, factors, place)]
        reduced = grid.sum(others) if others else grid
        if factor.parts:
            yield from leaf_sums(plan, factor, reduced)
        else:
            yield factor, reduced


def axis_factors(plan: Plan, dim: Dim, factors: Mapping[Dim, Tensor]) -> Tensor:
    """Return for each index of an axis the product of what `factors` has for it in each leaf, `(n,)` float64.

    Args:
        plan: knows which leaf lies inside which.
        dim: the axis.
        factors: `(n_leaf,)` or `(n_outer, n_leaf)` for some leaves; 1 for all others.
    """
    dim = find(dim)
    if dim.parts:
        return torch.cat([axis_factors(plan, part, factors) for part in parts_of(dim)])
    inside = [find(factor) for factor in factors_of(dim)]
    grid = torch.ones([factor.size for factor in inside], dtype=torch.float64)
    for place, factor in enumerate(inside):
        own = factors.get(factor) if factor.is_leaf else axis_factors(plan, factor, factors)
        if own is not None:
            along = _places(plan, inside, place) if own.ndim == 2 else [place]
            grid = grid * own.to(grid).view([size if at in along else 1 for at, size in enumerate(grid.shape)])
    return grid.flatten()


def _places(plan: Plan, factors: list[Dim], place: int) -> list[int]:
    """Return the place of a factor and that of the leaf around it, if both are in the same product."""
    outer = plan.under.get(factors[place])
    return [at for at, other in enumerate(factors) if at == place or other is outer]


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
    found: list[int] = row.tolist()
    return found


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
