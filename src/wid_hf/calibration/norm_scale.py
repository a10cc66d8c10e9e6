"""The vectors that scale what a tied decoder reads: the last normalisation's weight, and its bias.

Takes a plan and the student's folded weights, tells which vectors stand before which read, and how far what a table
makes is from the teacher's. Called by `lifts`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..coupling.carrier import Carrier
from ..coupling.plan import Plan, key
from ..layers import Compactor, FoldedWeight, IndexSelect
from .moments import place_of


def scaled_reads(plan: Plan, folded_weights: Mapping[str, FoldedWeight]) -> dict[int, tuple[str, ...]]:
    """Return each read of a table that is also looked up, with the vectors that scale what it reads, by name.

    Left out is what a compactor turns, and a vector whose products some other weight reads as well.
    """
    found = {}
    for at, read in enumerate(plan.weight_inputs):
        dim, made = plan.axes[read.weight][read.axis], read.carrier
        if made is None or read.weight not in plan.looked_up or plan.size(dim) == dim.size:
            continue
        if made != Carrier(made.parameter, 0, 0, dim.size) or len(plan.axes[made.parameter]) != 1:
            continue
        if any(
            other.carrier is not None and other.carrier.parameter == made.parameter and other.weight != read.weight
            for other in plan.weight_inputs
        ):
            continue
        module = made.parameter.rpartition(".")[0]
        names = tuple(
            name
            for name, axes in plan.axes.items()
            if name.rpartition(".")[0] == module
            and [key(each) for each in axes] == [key(dim)]
            and name in folded_weights
        )
        chosen = all(isinstance(map_, IndexSelect) for name in names for map_ in folded_weights[name].maps.values())
        if made.parameter in names and chosen and _columns(folded_weights, read.weight, read.axis) is not None:
            found[at] = names
    return found


def seen_through(weight: Tensor, axis: int, compaction: FoldedWeight) -> tuple[Tensor, Tensor]:
    """Return `V (n, n)` with `V^T V = W^T W` of a reading table, and `V C (n, k)` for the student's columns C.

    What W makes of x has the length of `V x`, so a fit of the table's outputs needs no more than n rows. W is taken
    about the mean of its rows: a table of tokens makes scores for a softmax, which their common height does not change.
    """
    rows = weight.detach().movedim(axis, -1).flatten(0, -2)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh((rows.T @ rows).to(place_of(rows.device), torch.float64))
    root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    compactor = compaction.maps[str(axis)]
    assert isinstance(compactor, Compactor)  # `scaled_reads` asked
    return root.to(rows), root @ compactor.matrix.detach().T.to(root)


def divergence(table: Tensor, bias: Tensor | None, x: Tensor, y: Tensor, columns: Tensor) -> float:
    """Return the mean of `KL(softmax(W x + b) | softmax(W C y + b))` over positions, in nats.

    Args:
        table: W `(m, n)`.
        bias: b `(m,)`, or none.
        x: what the teacher reads `(p, n)`.
        y: what the student reads `(p, k)`.
        columns: C `(n, k)`.
    """
    rows = table.detach().float()
    offset = bias.detach().float() if bias is not None else rows.new_zeros(())
    wanted = torch.log_softmax(x.float() @ rows.T + offset, dim=-1)
    found = torch.log_softmax(y.float() @ (rows @ columns.float()).T + offset, dim=-1)
    return float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


def _columns(folded_weights: Mapping[str, FoldedWeight], weight: str, axis: int) -> Compactor | None:
    found = folded_weights[weight].maps[str(axis)] if weight in folded_weights else None
    return found if isinstance(found, Compactor) else None
