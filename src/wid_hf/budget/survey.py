"""What a search needs to know of a teacher, found once for the fronts of all its targets.

Takes fronts of one space and calibration data; gives a `Survey`: texts to calibrate on and texts to score on, the
teacher's outputs on these, and the order in which layers go. Moments of its activations are not shared: which of them
a start needs depends on its plan, and all of a BERT-base would take more than a gigabyte. Called by `halving`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration.batches import NOTHING_BUT_PADDING, Batch, prepared
from ..calibration.candidates import HELD_OUT
from ..calibration.division import parted, spread, texts_in
from ..config import COUNT, CalibrationConfig, LayerChoice
from ..coupling.trace import quiet_forward
from ..errors import DataError, PlanError
from ..planning.tracing import plain_attention
from .front import Front
from .layer_order import LayerOrder, layer_order, texts_of_greedy

SCORED = 128  # texts at most that judge candidates
ORDER_SHARE = 0.2  # of the time, for the order of layers: greedy choice of many layers takes longer
FOLLOWING, ORDERING = "the teacher's outputs", "the order of layers"

Clock = Callable[[], float]


@dataclass(frozen=True)
class Survey:
    """A teacher as candidates are compared with it.

    Attributes:
        given: batches to calibrate on.
        held_out: batches to score on.
        wanted: the teacher's outputs on each of these.
        calibration: how starts are made; no layer is refined.
        order: in which layers go as far as any candidate needs; None if none goes.
        fixed: why no student may have fewer layers; empty if some may.
        spent: seconds by what was done in them, for each of the fronts.
    """

    given: Sequence[Batch]
    held_out: Sequence[Batch]
    wanted: Sequence[Any]
    calibration: CalibrationConfig
    order: LayerOrder | None
    fixed: str
    spent: Mapping[str, float]

    @classmethod
    def of(
        cls,
        fronts: Sequence[Front],
        batches: Iterable[Batch],
        *,
        seconds: float,
        calibration: CalibrationConfig | None = None,
        clock: Clock = time.monotonic,
    ) -> Survey:
        """Run the teacher of some fronts.

        Args:
            fronts: one for each target, of one space.
            batches: keyword dictionaries for the teacher's forward, as for `calibrate`; one text in four, but no more
                than 128, is held out.
            seconds: that the searches may take in all; a fifth of them may be spent on the order of layers.
            calibration: how starts are made, by default as `CalibrationConfig()` says.
            clock: gives seconds.

        Raises:
            DataError: fewer than two texts, or batches that cannot be used.
        """
        given, held_out = _divided(spread([*batches]))
        teacher, made = fronts[0].space.teacher, replace(calibration or CalibrationConfig(), refine=0)
        began = clock()
        with plain_attention(teacher):
            wanted = outputs_of(teacher, held_out)
        followed = clock()
        by = made.layer_choice
        forward = (followed - began) / sum(map(texts_in, held_out))
        if forward * _texts_of_greedy(fronts) > ORDER_SHARE * seconds:
            by = "influence"
        order, fixed = _order(fronts, given, by)
        spent = {FOLLOWING: followed - began, ORDERING: clock() - followed}
        shares = {what: each / len(fronts) for what, each in spent.items()}
        return cls(given, held_out, wanted, made, order, fixed, shares)


def outputs_of(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Any]:
    """Return what a model gives for each batch, without gradients."""
    with torch.no_grad(), quiet_forward(model):
        return [model(**prepared(model, batch)) for batch in batches]


def _divided(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Return batches to calibrate on, and batches to score on."""
    texts = sum(map(texts_in, batches))
    if texts < 2:
        raise DataError(f"{NOTHING_BUT_PADDING} A search needs two texts or more: one to score on.")
    given, held_out = parted(batches, texts - min(max(texts // HELD_OUT, 1), SCORED))
    if not given or not held_out:
        raise DataError("The calibration data is one batch that cannot be divided. Pass several smaller batches.")
    return given, held_out


def _depths(fronts: Sequence[Front]) -> list[int]:
    """Return the numbers of layers of candidates that have fewer than the teacher."""
    shapes = [(front.space, each.shape) for front in fronts for each in front.candidates]
    return [shape[COUNT] for space, shape in shapes if space.is_shallow(shape)]


def _texts_of_greedy(fronts: Sequence[Front]) -> int:
    depths = _depths(fronts)
    return texts_of_greedy(max(fronts[0].space.layers), min(depths)) if depths else 0


def _order(fronts: Sequence[Front], batches: Sequence[Batch], by: LayerChoice) -> tuple[LayerOrder | None, str]:
    """Return in which order layers go, if a candidate has fewer than the teacher; or why none may."""
    teacher, depths = fronts[0].space.teacher, _depths(fronts)
    if not depths:
        return None, ""
    try:
        with plain_attention(teacher):
            return layer_order(teacher, min(depths), batches, by), ""
    except PlanError as refusal:
        return None, str(refusal)
