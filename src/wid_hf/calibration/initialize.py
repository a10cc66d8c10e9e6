"""The whole start of a student from calibration data: select or turn, then lift.

Takes an installed student with its teacher, trace and plan; sets its compactors. Called by the tuner.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..coupling.dims import Dim
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from ..layers import first_indices, folded_weights, restart
from .lockstep import Batch, Precision
from .reconstruction import lift_reads
from .report import Calibration
from .rotation import turnable_stream
from .select import Survey, survey
from .variance import variance_indices


def calibrated_start(
    teacher: nn.Module, student: nn.Module, trace: Trace, plan: Plan, batches: Iterable[Batch], *,
    selection: str = "pivots", spectra: bool = True, lifts: bool = True, basis: bool = True, ridge: float = 1e-4,
) -> tuple[dict[Dim, Tensor], Calibration]:  # fmt: skip
    """Set the compactors of `student` to their start and return the index sets with a record.

    Args:
        teacher: runs as it is, in evaluation mode, without gradients.
        student: installed by `compaction.install`.
        trace: the teacher's.
        plan: sizes.
        batches: keyword dictionaries for the teacher's forward; held in memory until the end.
        selection: how indices are chosen: `"first"`, `"variance"` or `"pivots"`.
        spectra: whether the inside of attention heads is turned, instead of selected.
        lifts: whether what is read is fitted to what the teacher reads.
        basis: whether a stream that meets nothing but RMS norms and matrices is turned, instead of selected.
        ridge: strength of the regularisation of lifts.

    Raises:
        DataError: no batch or nothing but padding, too few positions, or activations that are not finite.
    """
    began = time.monotonic()
    batches = list(batches)
    precision = Precision.of_caller(next(teacher.parameters()).device)
    with torch.inference_mode(False), torch.no_grad(), precision.full():
        given = first_indices(plan) if selection == "first" else None
        if selection == "variance":
            given = variance_indices(teacher, trace, plan, batches, precision)
        if given is not None and not spectra:
            seen = Survey(given)
        else:
            stream = turnable_stream(teacher, trace, plan) if basis and given is None else None
            seen = survey(
                teacher, trace, plan, batches, precision=precision, given=given, spectra=spectra, stream=stream
            )
        restart(student, trace.weights, plan, seen.sets, seen.rotations, seen.vectors)
        sites = []
        if lifts:
            own = {name: module for name, module in folded_weights(student).items() if name in trace.weights}
            sites = lift_reads(teacher, student, own, trace, plan, batches, precision=precision, ridge=ridge)
    return seen.sets, Calibration(tuple(sites), seen.positions, time.monotonic() - began)
