"""Head SVD: maps inside attention heads that approximate logits and contexts best.

Takes second moments per head, gives dense row maps `(heads, k, n)`. Called by `head_rotation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-8  # of the mean variance: keeps square roots and solutions finite where a head's activations never vary


def logit_maps(left: Tensor, right: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return `P` and `Q (heads, k, n)` that approximate products `x^T y` best: `x^T y ~ (P x)^T (Q y)`.

    With `A = S_x^(1/2)`, `B = S_y^(1/2)` and the singular value decomposition `A B = U D V^T`, the best product
    of rank k is `P^T Q` with `P = D^(-1/2) V_k^T B` and `Q = D^(-1/2) U_k^T A` (Eckart and Young 1936, in the
    coordinates where both are white).

    Args:
        left: second moments of x, `(heads, n, n)`.
        right: of y, the same shape; about the mean if a shift of all y changes nothing.
        width: k.
    """
    a, b = _root(_regular(left)), _root(_regular(right))
    u, d, vh = torch.linalg.svd(a @ b)
    shrink = d[:, :width, None].rsqrt()
    return shrink * (vh[:, :width] @ b), shrink * (u[:, :, :width].mT @ a)


def context_maps(moments: Tensor, grams: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return `R (heads, k, n)` and `C (heads, n, k)` that approximate `W x ~ W C R x` best, R with orthonormal rows.

    The span of R is that of the leading left singular vectors of `W S^(1/2)`, pulled back through W; C is the
    regression of x on `R x`.

    Args:
        moments: second moments S of x, `(heads, n, n)`.
        grams: `W^T W (heads, n, n)` of the weights that x is contracted with.
        width: k.
    """
    moments, grams = _regular(moments), _regular(grams)
    root = _root(moments)
    # The right singular vectors V of W S^(1/2) are the eigenvectors of S^(1/2) W^T W S^(1/2); R = V^T S^(-1/2)
    # spans the same rows as V^T S^(1/2) W^T W, which needs no inverse.
    vectors = torch.linalg.eigh(root @ grams @ root).eigenvectors.flip(-1)[..., :width]
    rows = torch.linalg.qr((vectors.mT @ root @ grams).mT).Q.mT
    across = moments @ rows.mT
    return rows, torch.linalg.solve(rows @ across, across.mT).mT


def _regular(moments: Tensor) -> Tensor:
    """Return positive definite moments; those of a head whose activations are all zero become the identity."""
    energy = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    identity = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return torch.where(energy > 0, moments + RIDGE * energy * identity, identity)


def _root(moments: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moments)
    return vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT
