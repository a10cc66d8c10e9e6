"""The residual stream of a decoder with RMS norms in an orthogonal basis, in place of selected indices.

Takes a wid model and calibration batches, sets its start. The norm of a vector is the same in every orthogonal basis,
so an RMS norm without a weight commutes with it: norm weights move into what reads, and the student's stream is `Q^T x`
with `Q (n, k)` the leading eigenvectors of the normed stream's second moments, summed over all norms (SliceGPT,
Ashkboos and others 2024). A measurement, no part of the library: the stream may meet RMS norms with weights, matrices
and one tied table, and nothing here asks whether it does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from peft import PeftModel
from subjects import Batch
from torch import Tensor
from transformers import PreTrainedModel

from wid_hf.calibration.lifts import lift_reads
from wid_hf.compaction import Choice, Compactor, compactions
from wid_hf.coupling.plan import key


@torch.no_grad()
def rotated_start(model: PeftModel, batches: Sequence[Batch]) -> None:
    """Calibrate `model` with a turned stream; feed-forward indices are selected and reads lifted as ever."""
    base = model.base_model
    base.calibrate(batches, lifts=False, spectra=False)
    (planned, teacher), plan, student = base._planned, base.plan, base.model
    weights = {name: tensor.detach() for name, tensor in planned.trace.weights.items()}
    own = {name: made for name, made in compactions(student).items() if name in weights}
    (table,) = plan.looked_up
    stream = plan.axes[table][1]
    n, k = stream.size, plan.size(stream)
    # What reads the stream reads what some norm's weight has scaled; the table reads what the last one's has.
    norms = {
        (read.weight, read.axis): read.carrier.parameter
        for read in plan.reads
        if key(plan.axes[read.weight][read.axis]) == key(stream) and read.carrier is not None
    }
    last = norms[table, 1]
    moments = _second_moments(teacher, set(norms.values()), batches)
    basis = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :k]
    # Turned within its span the basis is as good: let the last norm's weight, which a tied table cannot take over, be
    # as diagonal there as a weight must be.
    diagonal, turn = torch.linalg.eigh(basis.T @ (weights[last].to(basis)[:, None] * basis))
    basis = basis @ turn
    for name, made in own.items():
        for axis, part in made.maps.items():
            if key(plan.axes[name][int(axis)]) != key(stream):
                continue
            if isinstance(part, Choice):  # the student's norm divides by the mean of k squares, the teacher's of n
                largest = weights[name].abs().argsort(descending=True)[:k]
                value = (diagonal if name == last else torch.ones_like(diagonal)) * (n / k) ** 0.5
                part.indices.copy_(largest)
                part.factors.copy_(value / weights[name][largest])
            elif isinstance(part, Compactor):
                norm = norms.get((name, int(axis))) if name != table else None
                folded = basis if norm is None else weights[norm].to(basis)[:, None] * basis
                part.matrix.copy_(folded.T)
    lift_reads(teacher, student, own, planned.trace, plan, batches, ridge=base._config.ridge)


def _second_moments(teacher: PreTrainedModel, norms: Collection[str], batches: Sequence[Batch]) -> Tensor:
    """Return `(n, n)` second moments of what all norms make, their weights aside, summed."""
    size = teacher.config.hidden_size
    total = torch.zeros(size, size, dtype=torch.float64)

    def hook(module: Any, args: tuple[Tensor], out: Tensor) -> None:
        rows = args[0].flatten(0, -2)
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt()
        total.add_((rows.T @ rows).double())

    with ExitStack() as stack:
        for name in norms:
            stack.callback(teacher.get_submodule(name.rpartition(".")[0]).register_forward_hook(hook).remove)
        for batch in batches:
            teacher.base_model(input_ids=batch["input_ids"], use_cache=False)
    return total
