"""The calibrated start of a student, from the first batch to the report.

Takes an installed student with its teacher, trace, plan and calibration data; sets its compactors in closed form,
without gradients. Called by the tuner's `calibrate`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..coupling.dims import Dim
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from ..layers import first_indices, restart
from .batches import Batch
from .head_products import rotatable_heads
from .head_rotation import HeadRotation
from .moment_pass import Gatherer, gather_moments
from .precision import Precision
from .reconstruction import reconstruct
from .report import Calibration, InputReconstruction
from .select import SubsetSelection
from .stream import turnable_streams
from .stream_rotation import StreamRotation
from .variance import variance_indices


def initialize(
    teacher: nn.Module,
    student: nn.Module,
    trace: Trace,
    plan: Plan,
    batches: Iterable[Batch],
    *,
    selection: str = "pivots",
    head_svd: bool = True,
    pca: bool = True,
    reconstruction: bool = True,
    ridge: float = 1e-4,
    outputs_too: bool = True,
) -> tuple[dict[Dim, Tensor], Calibration]:
    """Set the compactors of `student` to their start; return the index sets and what calibration found.

    Args:
        teacher: runs as it is, in evaluation mode, without gradients.
        student: installed by `layers.install`.
        trace: the teacher's.
        plan: sizes.
        batches: keyword dictionaries for the teacher's forward; all are in memory until the end.
        selection: the rule by which indices are chosen: `"first"`, `"variance"` or `"pivots"` (column subsets).
        head_svd: whether to rotate the inside of attention heads by head SVD instead of selecting indices.
        pca: whether to rotate a stream that only RMS norms and matrices use by PCA instead of selecting indices.
        reconstruction: whether to fit every weight input to the teacher's.
        ridge: ridge strength of these fits, relative to the mean variance of the input.

    Raises:
        DataError: no batch or nothing but padding, too few positions, or activations that are not finite.
    """
    began = time.monotonic()
    batches = list(batches)
    precision = Precision.of_caller(next(teacher.parameters()).device)
    with torch.inference_mode(False), torch.no_grad(), precision.full():
        # Simple rules choose index sets without knowing which weights the indices go into.
        index_sets = None
        if selection == "first":
            index_sets = first_indices(plan)
        elif selection == "variance":
            index_sets = variance_indices(teacher, trace, plan, batches, precision)

        # A dimension that any matrix may rotate keeps combinations of its indices; all others keep indices.
        heads = rotatable_heads(trace, plan) if head_svd else {}
        streams = turnable_streams(teacher, trace, plan, outputs_too) if pca and index_sets is None else []
        rotated = set(heads) | {stream.leaf for stream in streams}
        subsets = SubsetSelection(plan, rotated)
        head_rotation = HeadRotation(trace, plan, heads)
        stream_rotation = StreamRotation(trace, plan, streams)

        # Run the teacher in lockstep over the batches and gather the moments of every weight input.
        positions = 0
        if index_sets is None or head_svd:
            gatherers: list[Gatherer] = [subsets, head_rotation, stream_rotation]
            positions = gather_moments(teacher, trace, plan, batches, precision, gatherers)

        # Column subset selection by pivoted Cholesky, head SVD and PCA of the stream, into the compactors.
        turned = stream_rotation.turned()
        index_sets = {**subsets.index_sets(index_sets), **turned.index_sets}
        rotations = {**head_rotation.maps(index_sets), **turned.rotations}
        restart(student, trace.weights, plan, index_sets, rotations, turned.vectors)

        # Layer-wise least squares, in the order of the forward: columns, bias shifts, scales before tied decoders.
        found: list[InputReconstruction] = []
        if reconstruction:
            found = reconstruct(
                teacher,
                student,
                trace,
                plan,
                batches,
                precision=precision,
                ridge=ridge,
                streams=[(stream, turned.maps[stream.leaf]) for stream in streams],
            )
    return index_sets, Calibration(tuple(found), positions, time.monotonic() - began)
