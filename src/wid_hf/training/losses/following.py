"""The loss of a student that follows a teacher's last hidden states.

Takes hidden states of both, gives a number. Called by `FollowingTrainer`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pooling import mean_pool


def following_loss(student: Tensor, teacher: Tensor, indices: Tensor, mask: Tensor, cosine_weight: float) -> Tensor:
    """Return `|s - t_i|^2 / |t_i|^2 + w * mean((cos_s - cos_t)^2)`, with `t_i` the teacher's states at `indices`.

    The first term is over attended tokens, as a share of the teacher's energy; the second over the cosines of all
    pairs of mean-pooled vectors in the batch.

    Args:
        student: last hidden states `(b, s, k)`.
        teacher: last hidden states `(b, s, n)`.
        indices: `(k,)` the index set of the hidden states.
        mask: `(b, s)`, 0 at padding.
        cosine_weight: w.
    """
    attended = mask.unsqueeze(-1).to(teacher.dtype)
    target = teacher[..., indices]
    hidden = ((student - target) * attended).square().sum() / (target * attended).square().sum()
    if len(teacher) < 2:
        return hidden
    mine, theirs = _cosines(mean_pool(student, mask)), _cosines(mean_pool(teacher, mask))
    return hidden + cosine_weight * (mine - theirs).square().mean()


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosines of all pairs of rows, `(pairs,)`."""
    unit = functional.normalize(vectors, dim=1)
    above = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device).unbind()
    return (unit @ unit.T)[above]
