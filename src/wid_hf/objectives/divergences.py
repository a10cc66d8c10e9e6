"""How far a student's outputs are from its teacher's, row by row. Pure functions of tensors; called by objectives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import in_float64
from ..training.losses.counting import full
from ..training.losses.logits import logits_loss


def agreement(student: Tensor, teacher: Tensor) -> float:
    """Return the share of predictions `(n,)` that are the teacher's."""
    return float(in_float64(student == teacher).mean())


def softmax_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `KL(softmax(t) || softmax(s))` of each row `(n,)` of scores `(n, classes)`, in nats."""
    return logits_loss(student, teacher, temperature=1.0)


def span_divergence(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """Return the mean of `softmax_divergence` over both ends of a span, `(n,)` of scores `(n, tokens, 2)`.

    Args:
        student: scores of each token being the first and the last one.
        teacher: the same.
        attended: `(n, tokens)`, False at padding.
    """
    mine, theirs = (
        full(scores).masked_fill(~attended[..., None], torch.finfo(torch.float32).min) for scores in (student, teacher)
    )
    return softmax_divergence(mine.mT, theirs.mT).mean(1)


def sigmoid_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum over labels of the divergences of yes and no, `(n,)` of scores `(n, labels)`, in nats.

    A label with score x is on with probability `sigmoid(x)`, whatever the others are.
    """
    student, teacher = full(student), full(teacher)
    on = teacher.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(teacher, on, reduction="none")
    return (functional.binary_cross_entropy_with_logits(student, on, reduction="none") - entropy).sum(-1)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of each row `(n,)` of numbers `(n, m)`."""
    return (full(student) - full(teacher)).square().sum(-1)
