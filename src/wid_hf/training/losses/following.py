"""The loss of a student that follows a teacher's last hidden states.

Takes hidden states of both, gives a number. Called by `FollowingTrainer` and the objective of headless encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...adapter.tuner import WidModel
from ...errors import TeacherError
from ...sentence_models.pooling import mean_pool
from ...sentence_models.similarity import cosines, of_pairs
from .counting import attended_positions
from .registry import FOLLOWED


def followed(
    wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any], cosine_weight: float = 1.0
) -> Tensor:
    """Return `following_loss` of one batch, in the student's coordinates; a wide student is mapped as its teacher is.

    Args:
        wid: the wid model.
        student: its outputs.
        teacher: those of its teacher.
        inputs: of both.
        cosine_weight: of the cosine term.

    Raises:
        TeacherError: the teacher has no `last_hidden_state`.
    """
    if not hasattr(teacher, "last_hidden_state"):
        raise TeacherError(
            f'{type(wid.teacher).__name__} returns no last_hidden_state, which the loss "{FOLLOWED}" compares. '
            "Give FollowingTrainer an encoder without a head, or use WidTrainer."
        )
    states, theirs = student.last_hidden_state, teacher.last_hidden_state
    if wid.is_wide:
        states = wid.map_outputs(states)
    mask = attended_positions(wid.teacher, theirs, inputs)
    return following_loss(states, wid.map_outputs(theirs), theirs, mask, cosine_weight)


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
    mine, theirs = (of_pairs(cosines(mean_pool(states, mask))) for states in (student, teacher))
    return hidden + cosine_weight * (mine - theirs).square().mean()
