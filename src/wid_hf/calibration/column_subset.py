"""Which indices of a dimension explain the others best: column subset selection, greedily.

Takes covariances, gives kept indices in ascending order; ties go to the lower index. Called by `select`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RELATIVE_EPS = 1e-9  # of the largest variance: a smaller rest is rounding
PANEL = 64  # pivots between two updates of the whole matrix


def column_subset(covariance: Tensor, count: int) -> Tensor:
    """Return the first `count` pivots of a pivoted Cholesky factorisation, sorted `(count,)`.

    Each pivot is the index that varies most after regression on those chosen before it. If the rest is explained
    already (a degenerate covariance), the indices of largest variance follow.

    Args:
        covariance: `(n, n)`, float64.
        count: how many of the n are kept.
    """
    variance = covariance.diagonal().clone()
    left = variance.clone()
    enough = variance.max() * RELATIVE_EPS
    rest = covariance.clone()  # what pivots of earlier panels leave: products of matrices are faster than of vectors
    panel = covariance.new_zeros(PANEL, len(covariance))
    kept: list[int] = []
    while len(kept) < count and left.max() > enough:
        pivot, at = _first_largest(left), len(kept) % PANEL
        if kept and not at:
            rest.addmm_(panel.T, panel, alpha=-1)
        row = (rest[pivot] - panel[:at].T @ panel[:at, pivot]) / left[pivot].sqrt()
        panel[at] = row
        left = left - row.square()
        kept.append(pivot)
        left[pivot] = -torch.inf
    variance[kept] = -torch.inf
    while len(kept) < count:
        kept.append(_first_largest(variance))
        variance[kept[-1]] = -torch.inf
    return torch.tensor(sorted(kept))


def block_subset(covariances: Sequence[Tensor], grams: Sequence[Tensor], size: int, count: int) -> Tensor:
    """Return the `count` of `size` blocks (heads) whose indices best explain the contribution of all blocks.

    Greedy: each step adds the block that, together with those chosen before, explains the largest share of the
    energy `tr(W S W^T)` of the outputs, summed over the weights.

    Args:
        covariances: S `(n, n)` of the input of each weight, blocks outermost.
        grams: `W^T W (n, n)` of each weight.
        size: number of blocks.
        count: how many are kept.

    Returns:
        Sorted block numbers `(count,)`.
    """
    kept: list[int] = []
    for _ in range(count):
        gains = torch.full((size,), -torch.inf, dtype=torch.float64)
        for block in sorted(set(range(size)) - set(kept)):
            gains[block] = sum(
                _explained(covariance, gram, [*kept, block], size)
                for covariance, gram in zip(covariances, grams, strict=True)
            )
        kept.append(_first_largest(gains))
    return torch.tensor(sorted(kept))


def _explained(covariance: Tensor, gram: Tensor, chosen: list[int], size: int) -> float:
    """Return the share of `tr(W S W^T)` that regression on the chosen blocks explains."""
    width = len(covariance) // size
    inside = torch.cat([torch.arange(block * width, (block + 1) * width) for block in chosen])
    across = covariance[inside]
    own = across[:, inside]
    ridge = RELATIVE_EPS * own.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky_ex(own + ridge * torch.eye(len(own), dtype=own.dtype, device=own.device)).L
    explained = (torch.cholesky_solve(across @ gram, factor) * across).sum()
    return float(explained / (gram * covariance).sum().clamp(min=torch.finfo(torch.float64).tiny))


def _first_largest(values: Tensor) -> int:
    return int((values == values.max()).nonzero()[0])
