"""One pass of the teacher over the calibration data: the second moments of the weight inputs that are needed.

Takes the teacher and gatherers, which say which weight inputs they need; gives them the moments of these one by one in
the order of the forward. Called by `initialize`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ..coupling.dims import Dim
from ..coupling.landmark_record import Landmark
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from ..coupling.weight_inputs import WeightInput
from ..errors import DataError
from ..progress_bar import progress_bar
from .batches import NOT_FINITE, NOTHING_BUT_PADDING, Batch, prepared
from .division import first_tokens, tokens_in
from .lockstep import Lockstep, Operands, Watched, are_same
from .moments import Covariance, as_matrix
from .precision import Precision

ENOUGH = 24  # tokens for each index of the teacher's widest weight input


@dataclass(frozen=True)
class InputMoments:
    """The moments of one weight input, with its weight.

    Attributes:
        at: number of the weight input in the plan.
        weight_input: the weight input.
        dim: the tree of its axis.
        covariance: mean and second moments of its `n` indices over all positions.
        weight: the weight as a matrix `(everything else, n)`, float64.
    """

    at: int
    weight_input: WeightInput
    dim: Dim
    covariance: Covariance
    weight: Tensor

    @cached_property
    def matrix(self) -> Tensor:
        """Second moments `(n, n)`, about the mean if there is a bias that can absorb a constant."""
        return self.covariance.matrix(centred=self.weight_input.bias is not None)

    @cached_property
    def gram(self) -> Tensor:
        """`W^T W (n, n)` of the weight."""
        return self.weight.T @ self.weight


class Gatherer(Protocol):
    """An object that collects moments of some weight inputs."""

    def needs(self, at: int) -> bool:
        """Return whether it needs the moments of weight input number `at`."""

    def add(self, moments: InputMoments) -> None:
        """Add the moments of a weight input; those that are not needed are ignored."""


def gather_moments(
    teacher: nn.Module,
    trace: Trace,
    plan: Plan,
    batches: Sequence[Batch],
    precision: Precision,
    gatherers: Sequence[Gatherer],
) -> int:
    """Run the teacher, give moments to the gatherers, and return the number of positions of all batches.

    Of many texts the first ones are enough: what is chosen by moments hardly changes with more.

    Raises:
        DataError: there is no batch or only padding, fewer positions than the student is wide, or an activation
            that is not finite.
    """
    inputs = _needed(plan, gatherers)
    stops = [place.number for place in inputs]
    if not stops:  # no weight input shrinks
        return 0
    batches = [prepared(teacher, batch) for batch in batches]
    most = ENOUGH * max(plan.dim_of(each).size for each in plan.weight_inputs)
    seen = first_tokens(batches, most)
    positions = 0
    covariance: Covariance | None = None
    moments: InputMoments | None = None
    previous: Operands = []
    with Lockstep([Watched(teacher, trace.weights)], seen, plan, inputs, precision) as lockstep:
        for place, (operands,) in progress_bar(lockstep, "Gathering the teacher's moments", len(stops)):
            if covariance is None or not are_same(previous, operands):
                covariance = moments = None  # large: not two at once
                covariance = _covariance(operands)
                positions = max(positions, covariance.count)
            previous = operands
            moments = _input_moments(trace, plan, place.number, covariance)
            for gatherer in gatherers:
                gatherer.add(moments)
    if seen is not batches:
        positions = round(positions * tokens_in(batches) / tokens_in(seen))
    _refuse_too_few(positions, max(plan.size(plan.dim_of(plan.weight_inputs[at])) for at in stops))
    return positions


def _needed(plan: Plan, gatherers: Sequence[Gatherer]) -> list[Landmark]:
    return [place for place in plan.landmarks.of("input") if any(each.needs(place.number) for each in gatherers)]


def _covariance(operands: Operands) -> Covariance:
    present = [operand for operand in operands if operand is not None]
    first = present[0]
    covariance = Covariance(first.tensor.shape[first.axis], first.tensor.device)
    for operand in present:
        covariance.add(operand.rows)
    if not covariance.about_mean.isfinite().all():
        raise DataError(NOT_FINITE.format("teacher"))
    return covariance


def _input_moments(trace: Trace, plan: Plan, at: int, covariance: Covariance) -> InputMoments:
    weight_input = plan.weight_inputs[at]
    weight = trace.weights[weight_input.weight].detach().to(covariance.mean.device, torch.float64)
    return InputMoments(at, weight_input, plan.dim_of(weight_input), covariance, as_matrix(weight, weight_input.axis))


def _refuse_too_few(positions: int, widest: int) -> None:
    if not positions:
        raise DataError(NOTHING_BUT_PADDING)
    if positions <= widest:
        raise DataError(
            f"The calibration data holds {positions} tokens that are not padding, but the student's widest layer input "
            f"has {widest} indices: at least {widest + 1} tokens are needed, ten times as many are better. Give more "
            "texts, or raise CalibrationConfig.samples (--calibration-samples)."
        )
