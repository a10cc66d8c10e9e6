"""Maps inside heads: no maps of that rank keep logits and contexts better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wid_hf.calibration.head_svd import context_maps, logit_maps


def moments(heads: int, size: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(heads, size, 2 * size, generator=g, dtype=torch.float64)
    return factor @ factor.mT / (2 * size)


def root(matrices: Tensor) -> Tensor:
    return torch.linalg.cholesky(matrices)


@pytest.mark.parametrize("kept", [1, 4, 7, 8])
def test_logits_are_kept_as_well_as_the_best_product_of_that_rank(kept: int) -> None:
    left, right = moments(3, 8, 0), moments(3, 8, 1)
    p, q = logit_maps(left, right, kept)
    assert p.shape == q.shape == (3, kept, 8)
    # E|x^T y - (P x)^T (Q y)|^2 for independent x and y is the squared norm of A^T (1 - P^T Q) B.
    a, b = root(left), root(right)
    error = (a.mT @ (torch.eye(8) - p.mT @ q) @ b).square().sum((1, 2))
    best = torch.linalg.svdvals(a.mT @ b)[:, kept:].square().sum(1)
    assert torch.allclose(error, best, atol=1e-6)
    assert best.sum() > 0.01 or kept == 8


@pytest.mark.parametrize("kept", [1, 4, 7, 8])
def test_contexts_are_kept_as_well_as_the_best_of_that_rank(kept: int) -> None:
    inside, reader = moments(3, 8, 2), moments(3, 8, 3)
    rows, columns = context_maps(inside, reader, kept)
    a, w = root(inside), root(reader).mT  # W^T W = reader
    error = (w @ (torch.eye(8) - columns @ rows) @ a).square().sum((1, 2))
    best = torch.linalg.svdvals(w @ a)[:, kept:].square().sum(1)
    assert torch.allclose(error, best, atol=1e-6)
    assert torch.allclose(rows @ rows.mT, torch.eye(kept).double().expand(3, -1, -1), atol=1e-10)


def test_heads_that_never_move_give_finite_maps() -> None:
    nothing, something = torch.zeros(2, 6, 6, dtype=torch.float64), moments(2, 6, 0)
    one = torch.zeros_like(something)
    one[:, 0, 0] = 1.0
    for left, right in ((nothing, something), (something, nothing), (nothing, nothing), (one, something)):
        for each in (*logit_maps(left, right, 3), *context_maps(left, right, 3)):
            assert each.isfinite().all() and each.abs().max() < 1e6
