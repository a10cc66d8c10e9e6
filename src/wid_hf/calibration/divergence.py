"""How far a student's outputs are from its teacher's, as its task would judge them.

Takes outputs of both models, batch by batch. Called by `candidates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import in_float64
from ..coupling.trace import output_tensors
from .batches import Batch
from .padding import Padding

TEXTS = 256  # at most so many texts are compared with each other


def output_divergence(teacher: Sequence[Any], student: Sequence[Any], batches: Sequence[Batch]) -> tuple[float, str]:
    """Return how far a student's outputs are from the teacher's as their task reads them; see `divergence`."""
    wanted, found = ([seen_by_callers(output) for output in side] for side in (teacher, student))
    return divergence(wanted, found, batches, are_scores=bool(teacher) and bool(logits_in(teacher[0])))


def seen_by_callers(output: Any) -> list[Tensor]:
    """Return the tensors of an output that its task reads: all logits if it has any, else its first tensor."""
    if logits := logits_in(output):
        return logits
    return [tensor for tensor in output_tensors(output) if tensor.is_floating_point() and tensor.ndim][:1]


def logits_in(output: Any) -> list[Tensor]:
    """Return the scores in an output, by their names."""
    entries = output.items() if isinstance(output, Mapping) else ()
    return [value for name, value in entries if name.endswith("logits") and isinstance(value, Tensor)]


def divergence(
    teacher: Sequence[Sequence[Tensor]],
    student: Sequence[Sequence[Tensor]],
    batches: Sequence[Batch],
    *,
    are_scores: bool = True,
) -> tuple[float, str]:
    """Return how far the student's outputs are from the teacher's, and in what measure.

    Scores, whose last axes are equally long, have the mean Kullback-Leibler divergence of their softmax, in nats, over
    positions that are not padding (of masked language models those with a label); single scores the squared error as a
    share of their variance. Vectors have 1 less the correlation of the cosines of all pairs of mean vectors of texts.
    NaN counts as infinite, and what rounding makes less than 0 as 0.
    """
    if not teacher or not teacher[0]:
        return 0.0, "nothing to compare"
    last = teacher[0][0].shape[-1]
    if not are_scores or last != student[0][0].shape[-1]:
        found, measure = _of_vectors(teacher, student, batches), "1 - correlation of cosines"
    elif last == 1:
        found, measure = _of_numbers(teacher, student), "squared error / variance"
    else:
        found, measure = _of_scores(teacher, student, batches), "KL of the scores, nats"
    return (max(float(found), 0.0) if bool(found.isfinite()) else float("inf")), measure


def _of_scores(
    teacher: Sequence[Sequence[Tensor]], student: Sequence[Sequence[Tensor]], batches: Sequence[Batch]
) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ours, theirs, batch in zip(teacher, student, batches, strict=True):
        padding = Padding(batch)
        for wanted, found in zip(ours, theirs, strict=True):
            p, q = (padding.rows(each).float().log_softmax(-1) for each in (wanted, found))
            total += functional.kl_div(q, p, log_target=True, reduction="sum").cpu().double()
            count += len(p)
    return total / max(count, 1)


def _of_numbers(teacher: Sequence[Sequence[Tensor]], student: Sequence[Sequence[Tensor]]) -> Tensor:
    wanted, found = (torch.cat([each[0].double().flatten().cpu() for each in side]) for side in (teacher, student))
    return (wanted - found).square().mean() / wanted.var(correction=0).clamp(min=torch.finfo(torch.float64).tiny)


def _of_vectors(
    teacher: Sequence[Sequence[Tensor]], student: Sequence[Sequence[Tensor]], batches: Sequence[Batch]
) -> Tensor:
    sides = []
    for side in (teacher, student):
        vectors = torch.cat([_mean_vectors(each[0], batch) for each, batch in zip(side, batches, strict=True)])
        unit = functional.normalize(in_float64(vectors[:TEXTS]), dim=-1)
        pairs = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
        sides.append((unit @ unit.T)[pairs[0], pairs[1]])
    if len(sides[0]) < 2:
        return torch.zeros(())
    return 1 - torch.corrcoef(torch.stack(sides))[0, 1]


def _mean_vectors(tensor: Tensor, batch: Batch) -> Tensor:
    """Return the mean over everything but texts and the last axis, `(texts, n)`, padding left out."""
    if tensor.ndim < 3:
        return tensor.flatten(0, -2).float() if tensor.ndim > 1 else tensor[None].float()
    attended = Padding(batch).attended(tensor)
    rows = tensor.flatten(1, -2).float()
    if attended is None:
        return rows.mean(1)
    mask = attended.view(rows.shape[:2]).to(rows)[..., None]
    return (rows * mask).sum(1) / mask.sum(1).clamp(min=1)
