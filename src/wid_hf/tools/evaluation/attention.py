"""Where a student looks, and where its teacher did: divergence of attention maps, head by head.

Takes a teacher, a student and batches; gives a frozen dataclass of numbers. `attention_picture` draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...arithmetic import in_float64
from ...errors import DataError, WidError
from ...extras import extra
from ...scores.eval_mode import eval_mode


@dataclass(frozen=True)
class AttentionComparison:
    """How far each of a student's heads looks from where a head of the teacher looks.

    Attributes:
        divergence: Jensen-Shannon divergence in bits, from 0 (the same) to 1, `[layer][student's head]`, averaged
            over all query positions.
        matched: the teacher's head that each of the student's heads is compared with, `[layer][student's head]`.
        positions: how many query positions.
    """

    divergence: list[list[float]]
    matched: list[list[int]]
    positions: int

    @property
    def mean(self) -> float:
        """The mean over all layers and heads."""
        heads = [value for layer in self.divergence for value in layer]
        return sum(heads) / len(heads)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        return {
            "divergence": self.divergence,
            "matched": self.matched,
            "positions": self.positions,
            "mean": self.mean,
        }


def compare_attention(
    teacher: PreTrainedModel, student: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> AttentionComparison:
    """Compare attention maps of two models of equally many layers on the same batches.

    Heads of a student that was trained from random weights have no order. So each of the student's heads is paired with
    a different head of the teacher such that the sum of divergences is least (Hungarian method), for every student.

    Args:
        teacher: any model that returns `attentions` (or `encoder_attentions`).
        student: another, with as many layers and at most as many heads.
        batches: keyword dictionaries for both forwards; positions whose `attention_mask` is 0 do not count.
            Labels are not used.

    Raises:
        DataError: there is no batch, or only padding.
        WidError: a model returns no attention maps, or their layers or heads do not fit.
    """
    with extra("eval"):
        from scipy.optimize import linear_sum_assignment

    totals: list[Tensor] = []
    positions = 0
    with eager_attention(teacher), eager_attention(student), eval_mode(teacher) as device, eval_mode(student):
        for batch in batches:
            given = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            first = next(iter(given.values()))
            mask = given.get("attention_mask", torch.ones(first.shape[:2], device=device)).bool()
            maps = [attention_maps(model, given) for model in (teacher, student)]
            if len(maps[0]) != len(maps[1]) or maps[0][0].shape[1] < maps[1][0].shape[1]:
                raise WidError(
                    f"The teacher has {len(maps[0])} layers of {maps[0][0].shape[1]} heads, the student "
                    f"{len(maps[1])} of {maps[1][0].shape[1]}: give two models of as many layers, the student with no "
                    "more heads."
                )
            for at, (theirs, mine) in enumerate(zip(*maps, strict=True)):
                queries = mask if theirs.shape[2] == mask.shape[1] else mask.new_ones(theirs.shape[0], theirs.shape[2])
                divergence = _divergences(theirs, mine, queries)
                if at == len(totals):
                    totals.append(torch.zeros_like(divergence))
                totals[at] += divergence
            positions += int(mask.sum())
    if not positions:
        raise DataError("There is no batch to compare attention on, or nothing but padding in it: give some texts.")
    found: list[list[float]] = []
    matched: list[list[int]] = []
    for total in totals:
        mine, theirs = linear_sum_assignment((total / positions).cpu().numpy())
        found.append([float(total[one, other] / positions) for one, other in zip(mine, theirs, strict=True)])
        matched.append([int(head) for head in theirs])
    return AttentionComparison(found, matched, positions)


def _divergences(teacher: Tensor, student: Tensor, queries: Tensor) -> Tensor:
    """Return the divergence of all pairs of heads `(g, h)`, summed over query positions.

    Args:
        teacher: maps `(b, h, q, k)`.
        student: maps `(b, g, q, k)`.
        queries: `(b, q)`.
    """
    # (positions, heads, k): rows of query positions
    theirs, mine = (in_float64(maps.transpose(1, 2)[queries]) for maps in (teacher, student))
    pairs = [_entropy((theirs + mine[:, head, None]) / 2) - _entropy(theirs) / 2 for head in range(mine.shape[1])]
    return torch.stack(pairs).sum(1) - _entropy(mine).sum(0)[:, None] / 2


def _entropy(rows: Tensor) -> Tensor:
    """Return the entropy of distributions along the last axis, in bits."""
    return torch.special.entr(rows).sum(-1) / torch.log(torch.tensor(2.0, dtype=rows.dtype))


def attention_maps(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the maps `(b, heads, q, k)` of every layer; of a model with an encoder and a decoder, the encoder's.

    Raises:
        WidError: it returns none.
    """
    output = model(**batch, output_attentions=True)
    found = getattr(output, "attentions", None) or getattr(output, "encoder_attentions", None)
    if not found or any(layer is None for layer in found):
        raise WidError(f"{type(model).__name__} returns no attention maps for output_attentions=True.")
    return list(found)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use eager attention, since fused kernels never compute the maps."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
