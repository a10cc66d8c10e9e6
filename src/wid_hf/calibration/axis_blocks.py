"""Covariances of whole axes cut into blocks of their leaves, and maps of heads joined to block-diagonal ones.

Takes dimensions of a plan and matrices over their flat indices. Called by `select`, `head_rotation`,
`head_products` and the losses of heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import torch
from torch import Tensor

from ..coupling.dims import Dim, factors_of, find, parts_of
from ..coupling.index_sets import IndexSets, axis_indices
from ..coupling.plan import Plan


def pieces(dim: Dim) -> Iterator[tuple[int, Dim]]:
    """Yield each part of an axis with its first flat index; the axis itself if it has no parts."""
    start = 0
    for part in parts_of(dim):
        yield start, part
        start += part.size


def part_factors(dim: Dim, start: int, stop: int) -> list[Dim]:
    """Return the factors, outermost first, of the part of an axis that is exactly [start, stop); none if no part is."""
    found = [part for at, part in pieces(dim) if (at, at + part.size) == (start, stop)]
    return [find(factor) for factor in factors_of(found[0])] if found else []


def by_leaf(plan: Plan, dim: Dim, matrix: Tensor) -> Iterator[tuple[Dim, Tensor]]:
    """Yield each leaf of an axis with its blocks of a `(size, size)` matrix, summed over everything else.

    `(n, n)`, or `(n_outer, n, n)` if a leaf's indices may differ for each index of the leaf around it.
    """
    for start, part in pieces(dim):
        block = matrix[start : start + part.size, start : start + part.size]
        factors = [find(factor) for factor in factors_of(part)]
        grid = block.reshape([factor.size for factor in factors] * 2)
        for place, factor in enumerate(factors):
            around = [at for at, other in enumerate(factors) if other is plan.under.get(factor)]
            reduced = _partial_trace(grid, len(factors), [*around, place])
            if factor.parts:
                yield from by_leaf(plan, factor, reduced)
            else:
                yield factor, reduced


def _partial_trace(grid: Tensor, count: int, axes: list[int]) -> Tensor:
    """Keep the last of `axes` twice, the diagonal of its other entries, and sum over the diagonals of all the rest."""
    *around, last = axes
    rows = list(range(count))
    columns = [count if at == last else at for at in rows]
    return torch.einsum(grid, [*rows, *columns], [*around, last, count])


def spread(plan: Plan, factors: list[Dim], outer: Dim | None, sets: IndexSets, maps: Tensor) -> Tensor:
    """Return one block-diagonal map of a part of an axis from `maps (n_outer, k, n)` of its last factor.

    Args:
        plan: sizes.
        factors: of the part, all of them leaves.
        outer: the factor whose index selects the map; None if there is one map.
        sets: which indices of the factors around the last are kept.
        maps: for each index of `outer`, `k` from `n`.

    Returns:
        `(product of kept sizes, product of sizes)`.
    """
    around = factors[:-1]
    _, k, n = maps.shape
    selected = list(product(*(axis_indices(plan, factor, sets) for factor in around)))
    whole = maps.new_zeros(len(selected) * k, prod(factor.size for factor in factors))
    for row, indices in enumerate(selected):
        flat = 0
        for factor, index in zip(around, indices, strict=True):
            flat = flat * factor.size + index
        which = indices[around.index(outer)] if outer is not None else 0
        whole[row * k : (row + 1) * k, flat * n : (flat + 1) * n] = maps[which]
    return whole
