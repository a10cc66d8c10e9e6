"""Several starts of one student, of which the one is kept that follows the teacher best on texts it has not seen.

Takes ready-made candidates; calibrates each on a part of the texts and scores it on another part. Called by
`initialize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim
from ..coupling.trace import quiet_forward
from .batches import Batch, prepared
from .divergence import output_divergence
from .division import parted, texts_in
from .precision import Precision
from .report import Trial
from .stream import Stream

SELECTED = "indices selected"
TURNED = "stream turned"
OUTLIERS_KEPT = "stream turned, outlying indices kept"
HELD_OUT = 4  # one text in so many is scored
SCORED = 32  # texts at most
EQUAL = 1.05  # times the smallest divergence: what a trial on a part of the data cannot tell apart
ENOUGH = 2.5  # positions per index of the widest weight input in a trial; with fewer than 2 fits are of another kind


@dataclass(frozen=True)
class Candidate:
    """One way in which the maps of a student start.

    Attributes:
        name: in reports.
        index_sets: the indices that each leaf keeps.
        rotations: maps `(k, n)` of parts of axes in place of indices.
        vectors: values `(k,)` of norms' vectors.
        streams: each turned stream with its map T `(k, n)`.
    """

    name: str
    index_sets: Mapping[Dim, Tensor]
    rotations: Mapping[Carrier, Tensor]
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Sequence[tuple[Stream, Tensor]] = ()

    @property
    def maps(self) -> dict[Dim, Tensor]:
        """T `(k, n)` of every turned leaf."""
        return {stream.leaf: map_ for stream, map_ in self.streams}


def choose(
    candidates: Sequence[Candidate],
    start: Callable[[Candidate, Sequence[Batch]], Any],
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    *,
    positions: int,
    widest: int,
) -> tuple[Candidate, tuple[Trial, ...]]:
    """Return the first candidate whose divergence is about the smallest, and all trials.

    Args:
        candidates: one or more; a single one is not tried.
        start: calibrates the student on batches, starting from a candidate.
        teacher: the model to follow.
        student: is left at one of the candidates.
        batches: of all calibration data; a single text, or batch that cannot be divided, is used for both parts.
        precision: of the forwards.
        positions: of all batches.
        widest: indices of the student's widest weight input.
    """
    if len(candidates) == 1:
        return candidates[0], ()
    trial, held_out = _parts(batches, ENOUGH * widest / max(positions, 1))
    with quiet_forward(teacher):
        wanted = [_outputs(teacher, batch, precision) for batch in held_out]
    found: list[tuple[float, str]] = []
    for candidate in candidates:
        start(candidate, trial)
        with quiet_forward(student):
            outputs = [_outputs(student, batch, precision) for batch in held_out]
        found.append(output_divergence(wanted, outputs, held_out))
    least = min(score for score, _ in found)
    best = next(at for at, (score, _) in enumerate(found) if score <= EQUAL * least)
    trials = tuple(
        Trial(candidate.name, score, measure, at == best)
        for at, (candidate, (score, measure)) in enumerate(zip(candidates, found, strict=True))
    )
    return candidates[best], trials


def _parts(batches: Sequence[Batch], share: float) -> tuple[list[Batch], list[Batch]]:
    """Return the batches of a trial, `share` of all texts but no more than three in four, and those to score.

    With few texts a trial takes as many as there are: fits of turned streams need more than selections do. It takes
    no fewer than are scored.
    """
    texts = sum(map(texts_in, batches))
    scored = min(max(texts // HELD_OUT, 1), SCORED)
    others, held_out = parted(batches, texts - scored)
    trial, _ = parted(others, max(ceil(share * texts), scored))
    return (trial or [*batches[:1]]), (held_out or [*batches[-1:]])


def _outputs(model: nn.Module, batch: Batch, precision: Precision) -> Any:
    with torch.no_grad(), precision.autocast():
        return model.forward(**prepared(model, batch))
