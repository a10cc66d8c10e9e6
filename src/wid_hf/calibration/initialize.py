"""The calibrated start of a student, from the first batch to the report.

Takes an installed student with its teacher, trace, plan and calibration data; sets its compactors in closed form,
without gradients. Called by the tuner's `calibrate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arithmetic import full_float32
from ..coupling.dims import Dim
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from ..layers import first_indices, restart
from .batches import Batch
from .candidates import OUTLIERS_KEPT, SELECTED, TURNED, Candidate, choose
from .head_products import rotatable_heads
from .head_rotation import HeadRotation
from .moment_pass import Gatherer, gather_moments
from .precision import Precision
from .reconstruction import reconstruct
from .report import Calibration, InputReconstruction
from .select import SubsetSelection
from .stream import Stream
from .stream_proof import turnable_streams
from .stream_rotation import StreamRotation
from .variance import variance_indices


@dataclass(frozen=True)
class Start:
    """What a student starts from.

    Attributes:
        index_sets: the teacher's indices that each leaf keeps; of a turned leaf, those that it is nearest to.
        maps: T `(k, n)` of each turned leaf: its activations are `T x` of the teacher's x.
        report: what calibration found.
        has_head: whether a tied table scores something that no closed form fits well: the result of a head's own
            transform, or of the one vector that stands between a stream and its table.
    """

    index_sets: dict[Dim, Tensor]
    maps: dict[Dim, Tensor]
    report: Calibration
    has_head: bool = False


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
    output: str = "auto",
    tries: bool = True,
    whole: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Start:
    """Set the compactors of `student` to their start.

    Args:
        teacher: runs as it is, in evaluation mode, without gradients.
        student: installed by `layers.install`.
        trace: the teacher's.
        plan: sizes.
        batches: keyword dictionaries for the teacher's forward; all are in memory until the end.
        selection: the rule by which indices are chosen: `"first"`, `"variance"` or `"pivots"` (column subsets).
        head_svd: whether to rotate the inside of attention heads by head SVD instead of selecting indices.
        pca: whether to turn streams, where that is possible and brings the student nearer to the teacher.
        reconstruction: whether to fit every weight input to the teacher's.
        ridge: ridge strength of these fits, relative to the mean variance of the input.
        output: `"coordinates"` keeps indices in every stream that callers of the model see.
        tries: whether the ways in which streams may start are tried on a part of the batches; otherwise the first is
            taken.
        whole: inside, the teacher computes what the student is to follow, with layers that its student lacks.

    Raises:
        DataError: no batch or nothing but padding, too few positions, or activations that are not finite.
    """
    began = time.monotonic()
    batches = list(batches)
    precision = Precision.of_caller(next(teacher.parameters()).device)
    with torch.inference_mode(False), torch.no_grad(), precision.full(), full_float32(), ExitStack() as following:
        # Simple rules choose index sets without knowing which weights the indices go into.
        index_sets = None
        if selection == "first":
            index_sets = first_indices(plan)
        elif selection == "variance":
            index_sets = variance_indices(teacher, trace, plan, batches, precision)

        # A dimension that any matrix may rotate keeps combinations of its indices; all others keep indices.
        heads = rotatable_heads(trace, plan) if head_svd else {}
        turns = pca and index_sets is None
        streams = turnable_streams(teacher, trace, plan, outputs_too=output == "auto") if turns else []
        following.enter_context(whole())  # the proof turns weights of the student's layers alone
        subsets = SubsetSelection(plan, set(heads))
        head_rotation = HeadRotation(trace, plan, heads)
        stream_rotation = StreamRotation(trace, plan, streams)

        # Run the teacher in lockstep over the batches and gather the moments of every weight input.
        positions = 0
        if index_sets is None or head_svd:
            gatherers: list[Gatherer] = [subsets, head_rotation, stream_rotation]
            positions = gather_moments(teacher, trace, plan, batches, precision, gatherers)

        # Column subset selection by pivoted Cholesky, head SVD and PCA of streams.
        candidates = _candidates(subsets.index_sets(index_sets), head_rotation, stream_rotation, streams, tries)

        def start(candidate: Candidate, some: Sequence[Batch], measured: bool = False) -> list[InputReconstruction]:
            """Set the compactors, then fit them by layer-wise least squares in the order of the forward."""
            restart(student, trace.weights, plan, candidate.index_sets, candidate.rotations, candidate.vectors)
            if not reconstruction:
                return []
            return reconstruct(
                teacher,
                student,
                trace,
                plan,
                some,
                precision=precision,
                ridge=ridge,
                streams=candidate.streams,
                measured=measured,
            )

        widest = max((plan.size(plan.dim_of(each)) for each in plan.weight_inputs), default=1)
        best, trials = choose(
            candidates, start, teacher, student, batches, precision, positions=positions, widest=widest
        )
        found = start(best, batches, measured=True)
    report = Calibration(tuple(found), positions, time.monotonic() - began, _words(best), trials)
    has_head = reconstruction and any(stream.heads or stream.tied for stream in streams)
    return Start(dict(best.index_sets), best.maps, report, has_head)


def _words(best: Candidate) -> str:
    """Return which streams were turned, in words; empty if none was."""
    sizes = [f"{stream.leaf.size} -> {len(map_)}" for stream, map_ in best.streams]
    return f"Streams turned: {', '.join(sizes)}" if sizes else ""


def _candidates(
    index_sets: dict[Dim, Tensor],
    head_rotation: HeadRotation,
    stream_rotation: StreamRotation,
    streams: Sequence[Stream],
    tries: bool,
) -> list[Candidate]:
    """Return the starts to choose from: turned streams first, if there are any; only the first if none is tried."""
    selected = Candidate(SELECTED, index_sets, head_rotation.maps(index_sets, {}))
    if not streams:
        return [selected]
    turned = [(TURNED, stream_rotation.turned())]
    if tries and stream_rotation.has_outliers:
        turned.append((OUTLIERS_KEPT, stream_rotation.turned(keep_outliers=True)))
    inside_heads = head_rotation.maps(index_sets, turned[0][1].rotations)  # outlying indices make no difference to them
    found = []
    for name, parts in turned:
        rotations = {**inside_heads, **parts.rotations}
        maps = [(stream, parts.maps[stream.leaf]) for stream in streams]
        found.append(Candidate(name, {**index_sets, **parts.index_sets}, rotations, parts.vectors, maps))
    return [*found, selected] if tries else found
