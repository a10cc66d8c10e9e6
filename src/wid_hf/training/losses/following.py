"""The loss of a student that follows a teacher's last hidden states.

Takes hidden states of both, gives a number. Called by `FollowingTrainer`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pooling import mean_pool


def following_loss(student: Tensor, wanted: Tensor, teacher: Tensor, mask: Tensor, cosine_weight: float) -> Tensor:
    """Return `|s - t_m|^2 / |t_m|^2 + w * mean((cos_s - cos_t)^2)`, with `t_m` the teacher's states as the student's.

    The first term is over attended tokens, as a share of the teacher's energy; the second over the cosines of all
    pairs of mean-pooled vectors in the batch.

    Args:
        student: last hidden states `(b, s, k)`.
        wanted: the teacher's in the student's width, `(b, s, k)`: `WidModel.map_outputs` gives them.
        teacher: last hidden states `(b, s, n)`.
        mask: `(b, s)`, 0 at padding.
        cosine_weight: w.
    """
    attended = mask.unsqueeze(-1).to(teacher.dtype)
    hidden = ((student - wanted) * attended).square().sum() / (wanted * attended).square().sum()
    if len(teacher) < 2:
        return hidden
    mine, theirs = _cosines(mean_pool(student, mask)), _cosines(mean_pool(teacher, mask))
    return hidden + cosine_weight * (mine - theirs).square().mean()


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosines of all pairs of rows, `(pairs,)`."""
    unit = functional.normalize(vectors, dim=1)
    above = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device).unbind()
    return (unit @ unit.T)[above]
