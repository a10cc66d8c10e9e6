"""The scale of a tied decoder's input: the weight of the last normalisation, and its bias.

The table of a tied decoder is also looked up, and its columns are then outputs. So they stay as they are, and the
vector that scales the input is fitted instead. Called by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import in_float64
from ..coupling.carrier import Carrier
from ..coupling.dims import Dim
from ..coupling.plan import Plan, key
from ..coupling.trace import Trace
from ..coupling.weight_inputs import WeightInput
from ..layers import Compactor, FoldCache, FoldedWeight, IndexSelect
from .lockstep import Operands
from .moments import as_matrix
from .pairing import ENOUGH, paired_moments
from .report import FEW, ROUTED, UNSCALED, InputReconstruction

COMPARED = 256  # positions whose scores are compared: enough for a mean, not too many for a large vocabulary


class NormScale:
    """Fits the vectors that scale the inputs of tied decoders.

    The factors are `f = argmin E|W x_teacher - W C (f * x_student)|^2`: the error is that of the logits. They are used
    if the softmax comes nearer to the teacher's as well.

    Args:
        trace: has the teacher's weights.
        plan: sizes and weight inputs.
        folded_weights: of the student.
        folds: the student's kept folds; those of changed weights are dropped.
        ridge: ridge strength of the factors towards one.

    Attributes:
        vectors: for each tied decoder, by the number of its weight input, the names of the vectors that scale it.
    """

    def __init__(
        self, trace: Trace, plan: Plan, folded_weights: Mapping[str, FoldedWeight], folds: FoldCache, ridge: float
    ) -> None:
        self._weights = {name: weight.detach() for name, weight in trace.weights.items()}
        self._plan = plan
        self._folded = folded_weights
        self._folds = folds
        self._ridge = ridge
        self.vectors = scaled_inputs(plan, folded_weights)

    @torch.no_grad()
    def fit(self, at: int, teacher: Operands, student: Operands) -> InputReconstruction:
        """Set the vectors before weight input number `at`, and scale the student's operands as well."""
        weight_input = self._plan.weight_inputs[at]
        size = self._plan.size(self._plan.dim_of(weight_input))
        root, columns = self._root(weight_input)
        paired = None if weight_input.routed else paired_moments(teacher, student, size=size, root=root)
        if paired is None:
            return InputReconstruction.of(self._plan, at, 0, nan, nan, ROUTED)
        moments = paired.regression
        before = moments.error(columns, intercept=False)
        if moments.count < ENOUGH * size:
            return InputReconstruction.of(self._plan, at, moments.count, before, before, FEW)
        factors = moments.scales(columns, self._ridge)
        # Squares weigh all scores alike, a softmax the high ones: a smaller squared error may be worse for the softmax.
        if not self._is_nearer(weight_input, teacher, student, factors):
            return InputReconstruction.of(self._plan, at, moments.count, before, before, UNSCALED)
        self._scale(at, student, factors)
        after = moments.error(columns * factors, intercept=False)
        return InputReconstruction.of(self._plan, at, moments.count, before, after)

    def _scale(self, at: int, student: Operands, factors: Tensor) -> None:
        for name in self.vectors[at]:
            for selection in self._folded[name].maps.values():
                assert isinstance(selection, IndexSelect)  # `scaled_inputs` made sure
                selection.factors.mul_(factors.to(selection.factors))
            if (shift := self._folded[name].shift) is not None:
                shift.detach().mul_(factors.to(shift))
            self._folds.forget(self._folded[name])
        for operand in student:
            if operand is not None:  # it has the earlier factors
                operand.scale_(factors)

    def _root(self, weight_input: WeightInput) -> tuple[Tensor, Tensor]:
        """Return `V (n, n)` with `V^T V = W^T W` of a table, and `V C (n, k)` for the student's columns C.

        `W x` has the length of `V x`, so a fit of the table's outputs needs no more than n rows. The mean of W's rows
        is subtracted: a softmax does not change when all scores change by the same number.
        """
        table = as_matrix(self._weights[weight_input.weight], weight_input.axis)
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        table = table - table.mean(0)
        values, vectors = torch.linalg.eigh(in_float64(table.T @ table))
        root = values.clamp(min=0).sqrt()[:, None] * vectors.T
        return root.to(table), root @ self._columns(weight_input).to(root)

    def _is_nearer(self, weight_input: WeightInput, teacher: Operands, student: Operands, factors: Tensor) -> bool:
        """Return whether `factors (k,)` bring a table's scores nearer to the teacher's, on some positions."""
        table = as_matrix(self._weights[weight_input.weight], weight_input.axis)
        bias = self._weights[weight_input.bias] if weight_input.bias is not None else None
        columns = self._columns(weight_input)
        x, y = (_some_rows(operands) for operands in (teacher, student))
        without, scaled = (divergence(table, bias, x, y, each) for each in (columns, columns * factors.to(columns)))
        return scaled < without

    def _columns(self, weight_input: WeightInput) -> Tensor:
        compactor = _compactor(self._folded, weight_input)
        assert compactor is not None  # `scaled_inputs` made sure
        return compactor.matrix.detach().T


def _some_rows(operands: Operands) -> Tensor:
    """Return `COMPARED` rows of all batches, evenly, both ends included."""
    present = [operand for operand in operands if operand is not None]
    counts = [operand.positions[1] for operand in present]
    count = min(sum(counts), COMPARED)
    wanted = torch.arange(count) * (sum(counts) - 1) // max(count - 1, 1)
    found = []
    for operand, size in zip(present, counts, strict=True):
        own = wanted[(wanted >= 0) & (wanted < size)]
        if len(own):
            found.append(operand.rows[own.to(operand.tensor.device)])
        wanted = wanted - size
    return torch.cat(found)


def scaled_inputs(plan: Plan, folded_weights: Mapping[str, FoldedWeight]) -> dict[int, tuple[str, ...]]:
    """Return the number of each weight input of a table that is also looked up, with the vectors that scale it.

    Left out are vectors with a compactor, and those that scale the input of another weight as well.
    """
    found = {}
    for at, weight_input in enumerate(plan.weight_inputs):
        dim = plan.dim_of(weight_input)
        if weight_input.weight not in plan.looked_up or plan.size(dim) == dim.size:
            continue
        vector = scaling_vector(plan, weight_input)
        if vector is None or not _scales_only(plan, vector, weight_input.weight):
            continue
        names = _beside(plan, vector, dim, folded_weights)
        if vector in names and _compactor(folded_weights, weight_input) is not None:
            found[at] = names
    return found


def scaling_vector(plan: Plan, weight_input: WeightInput) -> str | None:
    """Return the name of the vector (a normalisation's weight) that scaled a weight input last, or None."""
    carrier = weight_input.carrier
    size = plan.dim_of(weight_input).size
    if carrier is None or carrier != Carrier(carrier.parameter, 0, 0, size) or len(plan.axes[carrier.parameter]) != 1:
        return None
    return carrier.parameter


def divergence(table: Tensor, bias: Tensor | None, x: Tensor, y: Tensor, columns: Tensor) -> float:
    """Return the mean of `KL(softmax(W x + b) | softmax(W C y + b))` over positions, in nats.

    Args:
        table: W `(m, n)`.
        bias: b `(m,)`, or none.
        x: the teacher's inputs of the table `(p, n)`.
        y: the student's `(p, k)`.
        columns: C `(n, k)`.
    """
    rows = table.detach().float()
    offset = bias.detach().float() if bias is not None else rows.new_zeros(())
    wanted = torch.log_softmax(x.float() @ rows.T + offset, dim=-1)
    found = torch.log_softmax(y.float() @ (rows @ columns.float()).T + offset, dim=-1)
    return float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


def _scales_only(plan: Plan, vector: str, weight: str) -> bool:
    """Return whether `weight` is the only one whose input is scaled by `vector`."""
    return all(
        other.weight == weight
        for other in plan.weight_inputs
        if other.carrier is not None and other.carrier.parameter == vector
    )


def _beside(plan: Plan, vector: str, dim: Dim, folded_weights: Mapping[str, FoldedWeight]) -> tuple[str, ...]:
    """Return the vectors along `dim` of the module that has `vector`; none if one of them has a compactor."""
    module = vector.rpartition(".")[0]
    names = tuple(
        name
        for name, axes in plan.axes.items()
        if name.rpartition(".")[0] == module and [key(each) for each in axes] == [key(dim)] and name in folded_weights
    )
    maps = [map_ for name in names for map_ in folded_weights[name].maps.values()]
    return names if all(isinstance(map_, IndexSelect) for map_ in maps) else ()


def _compactor(folded_weights: Mapping[str, FoldedWeight], weight_input: WeightInput) -> Compactor | None:
    """Return the compactor of the axis that the input is contracted with, or None."""
    if weight_input.weight not in folded_weights:
        return None
    found = folded_weights[weight_input.weight].maps[str(weight_input.axis)]
    return found if isinstance(found, Compactor) else None
