"""Distillation of logits: the divergence of softened class probabilities, at positions that have labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from ...errors import DataError
from .counting import full, mean_of
from .term import Setup, Term
from .watching import Seen


class LogitsTerm(Term):
    """The mean of `logits_loss` over the positions, or rows, that have labels.

    Raises:
        TeacherError: the teacher returns no logits of two or more classes.
    """

    name = "logits"

    def __init__(self, setup: Setup) -> None:
        self.temperature = setup.temperature
        logits = getattr(setup.seen.output, "logits", None)
        if logits is None or logits.shape[-1] < 2:
            setup.refuse(self.name, "returns no logits of two or more classes")

    def of_batch(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any], counted: Tensor | None) -> Tensor:
        """Return the mean over what counts.

        Raises:
            DataError: there is not one label for each row of logits.
        """
        refuse_scores(inputs, teacher.output.logits)
        return mean_of(counted_logits_loss(student, teacher, counted, self.temperature))


def refuse_scores(inputs: Mapping[str, Any], logits: Tensor) -> None:
    """Refuse labels that are scores for each class: the loss compares classes that exclude each other.

    Raises:
        DataError: multi-label classification, or a regression to several numbers.
    """
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape == logits.shape:
        raise DataError(
            'distillation "logits" compares probabilities of classes that exclude each other, but these labels are '
            f"numbers for each of {logits.shape[-1]} outputs (multi-label classification, or regression). Remove "
            '"logits" from distillation for this task.'
        )


def counted_logits_loss(student: Seen, teacher: Seen, counted: Tensor | None, temperature: float) -> Tensor:
    """Return `logits_loss` of the positions or rows that count, `(n,)`.

    Raises:
        DataError: there is not one label for each row of logits.
    """
    mine, theirs = (_counted_logits(seen, counted) for seen in (student, teacher))
    return logits_loss(mine, theirs, temperature)


def _counted_logits(seen: Seen, counted: Tensor | None) -> Tensor:
    """Return the logits `(n, classes)` of the positions or rows that count."""
    logits: Tensor = seen.output.logits
    if counted is None:
        return logits.flatten(0, -2)
    if seen.labelled:  # in the order of the positions, and one more if labels are shifted or there are none
        return logits.flatten(0, -2)[: int(counted.sum())]
    if counted.shape != logits.shape[:-1]:
        raise DataError(
            f'distillation "logits" needs one label for each row of classes: logits {tuple(logits.shape)} take labels '
            f"{tuple(logits.shape[:-1])}, but labels or mask are {tuple(counted.shape)}. With several labels per row, "
            'remove "logits" from distillation.'
        )
    return logits[counted]


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(softmax(t / T) || softmax(s / T))` per row `(n,)` of logits `(n, classes)`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
    """
    mine, theirs = (functional.log_softmax(full(logits) / temperature, -1) for logits in (student, teacher))
    return temperature**2 * divergence(theirs, mine)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return `KL(teacher || student)` of log-probabilities over the last axis."""
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
