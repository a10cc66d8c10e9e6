"""Which indices of a dimension explain the others best: column subset selection, greedily.

Takes covariances, gives kept indices in ascending order; ties go to the lower index. Called by `select`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RELATIVE_EPS = 1e-9  # of the largest variance: a smaller rest is rounding
TIE = 1e-6  # of all energy: blocks that explain no more than this apart are equal
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
    parts = [_Rest(covariance, gram, size) for covariance, gram in zip(covariances, grams, strict=True)]
    kept: list[int] = []
    for _ in range(count):
        gains = torch.stack([part.gains() for part in parts]).sum(0).cpu()
        gains[kept] = -torch.inf
        kept.append(_first_largest(gains, TIE))
        for part in parts:
            part.choose(kept[-1])
    return torch.tensor(sorted(kept))


class _Rest:
    """What regression on the blocks chosen so far leaves of a weight's input.

    Choosing a block subtracts a matrix of a block's rank from the covariance R of what is left, and one of three times
    that from `R W^T W R`, from which follows what every other block would explain.

    Args:
        covariance: S `(n, n)`.
        gram: `W^T W (n, n)`.
        size: number of blocks.
    """

    def __init__(self, covariance: Tensor, gram: Tensor, size: int) -> None:
        self._size, self._width = size, len(covariance) // size
        self._gram = gram
        self._left = covariance.clone()
        self._seen = covariance @ gram @ covariance
        tiny = torch.finfo(torch.float64).tiny
        self._ridge = (RELATIVE_EPS * covariance.diagonal().mean()).clamp(min=tiny)
        self._energy = (gram * covariance).sum().clamp(min=tiny)

    def gains(self) -> Tensor:
        """Return for each block the share of `tr(W S W^T)` that it would explain of what is left `(size,)`."""
        directions, factors = self._roots(self._blocks(self._left))
        seen = (directions.mT @ self._blocks(self._seen) @ directions).diagonal(dim1=1, dim2=2)
        return (seen * factors.square()).sum(1) / self._energy

    def choose(self, block: int) -> None:
        """Explain everything by this block as well."""
        part = slice(block * self._width, (block + 1) * self._width)
        directions, factors = self._roots(self._left[part, part])
        rows = (directions * factors).T @ self._left[part]  # R loses rows^T rows
        read = rows @ self._gram
        across = (read @ self._left).T @ rows
        self._seen -= across + across.T - rows.T @ (read @ rows.T) @ rows
        self._left -= rows.T @ rows

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Return the blocks on the diagonal `(size, width, width)`."""
        grid = matrix.view(self._size, self._width, self._size, self._width)
        return torch.einsum("ijik->ijk", grid)

    def _roots(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions of blocks of R, and for each the root of what its inverse multiplies by.

        Directions of which nothing but rounding is left, which may be below zero, count as explained.
        """
        left, directions = torch.linalg.eigh(blocks)
        return directions, torch.where(left > self._ridge, (left + self._ridge).rsqrt(), 0.0)


def _first_largest(values: Tensor, within: float = 0.0) -> int:
    return int((values >= values.max() - within).nonzero()[0])
