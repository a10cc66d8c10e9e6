"""Makes every weight of a stock student a function of its teacher's, and sets the maps to a start.

Takes a plan, index sets and the teacher's weights; puts a `FoldedWeight` on every weight of the student that shrinks.
`adapter/tuner.py` calls `install` and `student_weights`, calibration calls `restart`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..coupling import Dim, Plan
from ..coupling.carrier import Carrier
from ..coupling.dims import leaves
from ..coupling.index_sets import IndexSets, axis_indices
from ..coupling.plan import key
from .compactor import Compactor, IndexSelect
from .fold_cache import FoldCache, FoldPolicy
from .folded_weight import FoldedWeight, folded_weights
from .whole_tensors import is_parted, whole_weight


def install(
    student: nn.Module,
    teacher_weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    plan: Plan,
    sets: IndexSets,
    *,
    shifts: bool = False,
    square: bool = False,
) -> None:
    """Make every weight of `student` a function of the teacher's tensor of the same name.

    Weights that do not shrink become the teacher's own tensors; no teacher weight is copied. Tied weights
    share one original and one `FoldedWeight`, which folds once per forward.

    Args:
        student: a stock model of the student's shapes; of the teacher's with `square`.
        teacher_weights: the teacher's tensors under their first names.
        names: every name in the teacher's checkpoint with the first name of the same tensor.
        plan: trees and sizes.
        sets: which indices each leaf keeps at the start.
        shifts: give every vector that shrinks, and every bias beside a weight whose input shrinks, a learned shift,
            zero at the start.
        square: make every map the identity of the teacher's indices, without factors: the wide form, whose parameters
            have the names of the narrow form.
    """
    maps = _Maps(plan, sets, teacher_weights, square=square)
    shifted = _shifted(plan, teacher_weights) if shifts else set()
    made = {
        first: FoldedWeight(maps.of(first), maps.zeros(first) if first in shifted else None)
        for first in teacher_weights
        if maps.needed(first) or first in shifted
    }
    for name, first in names.items():
        module, attribute = _owner(student, name)
        _set_tensor(module, attribute, teacher_weights[first])
        if first in made:
            parametrize.register_parametrization(module, attribute, made[first], unsafe=True)
    FoldCache(student).keep(FoldPolicy.for_forwards())


def restart(
    student: nn.Module,
    teacher_weights: Mapping[str, Tensor],
    plan: Plan,
    sets: IndexSets,
    rotations: Mapping[Carrier, Tensor] | None = None,
    vectors: Mapping[str, Tensor] | None = None,
) -> None:
    """Set every map of an installed student back to selecting `sets`, in place; shifts become zero.

    `rotations (k, n)` replace selection in the ranges of axes that their keys name, and the vectors named in `vectors
    (k,)` start at these values, unless they have the map of a matrix beside them.
    """
    maps = _Maps(plan, sets, teacher_weights, rotations)
    vectors = vectors or {}
    for name, weight in folded_weights(student).items():
        if name in teacher_weights:
            for axis, fresh in maps.of(name).items():
                weight.maps[str(axis)].load_state_dict(fresh.state_dict())
            if weight.shift is not None:
                weight.shift.detach().zero_()
            if name in vectors and all(isinstance(map_, IndexSelect) for map_ in weight.maps.values()):
                weight.set_vector(teacher_weights[name].detach(), vectors[name])


def is_at_start(student: nn.Module, teacher_weights: Mapping[str, Tensor], plan: Plan, sets: IndexSets) -> bool:
    """Return whether every map of an installed student still selects `sets`, and every shift is zero."""
    maps = _Maps(plan, sets, teacher_weights)
    own = {name: weight for name, weight in folded_weights(student).items() if name in teacher_weights}
    if any(weight.shift is not None and bool(weight.shift.any()) for weight in own.values()):
        return False
    return all(
        _is_same(weight.maps[str(axis)], fresh) for name, weight in own.items() for axis, fresh in maps.of(name).items()
    )


def student_weights(student: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the student's weights as training sees them, detached, each tensor once under its first name.

    They are folded as in a forward: together, which may round otherwise than one by one. Where processes share the
    student's tensors, all of them must call this.
    """
    with (
        torch.no_grad(),
        nullcontext() if is_parted(student) else FoldCache(student).keeping(FoldPolicy.for_evaluation()),
    ):
        return {first: whole_weight(*_owner(student, first)) for first in dict.fromkeys(names.values())}


def compactor_axes(model: nn.Module, plan: Plan) -> Iterator[tuple[Compactor, Dim]]:
    """Yield every compactor of an installed model once, with the tree of the axis that it acts on."""
    seen = set()
    for name, weight in folded_weights(model).items():
        for axis, module in weight.maps.items():
            if name in plan.axes and isinstance(module, Compactor) and module not in seen:
                seen.add(module)
                yield module, plan.axes[name][int(axis)]


class _Maps:
    """Makes the map of each axis once, and shares it where weights must share it."""

    def __init__(
        self,
        plan: Plan,
        sets: IndexSets,
        weights: Mapping[str, Tensor],
        rotations: Mapping[Carrier, Tensor] | None = None,
        square: bool = False,
    ) -> None:
        self.plan = plan
        self.sets = sets
        self.weights = weights
        self.rotations = rotations or {}
        self.square = square
        self.shared: dict[Any, Compactor | IndexSelect] = {}

    def needed(self, weight: str) -> bool:
        """Return whether any axis of `weight` shrinks or is scaled."""
        return bool(self._axes(weight))

    def of(self, weight: str) -> dict[int, Compactor | IndexSelect]:
        """Return the maps of all axes of `weight` that need one."""
        return {axis: self._map(weight, axis) for axis in self._axes(weight)}

    def zeros(self, bias: str) -> Tensor:
        """Return a shift for `bias` that changes nothing."""
        weight = self.weights[bias]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(self.plan.shape(bias), dtype=dtype, device=weight.device)

    def _axes(self, weight: str) -> list[int]:
        dims = self.plan.axes[weight]
        return [a for a, d in enumerate(dims) if self.plan.size(d) < d.size or self._scaled(weight, a)]

    def _map(self, weight: str, axis: int) -> Compactor | IndexSelect:
        place = self._place(weight, axis)
        if place not in self.shared:
            dim = self.plan.axes[weight][axis]
            indices = torch.tensor(axis_indices(self.plan, dim, self.sets))
            factors = torch.ones(dim.size, dtype=torch.float64) if self.square else self._factors(weight, axis)[indices]
            device, dtype = self.weights[weight].device, self.weights[weight].dtype
            factors = factors.to(torch.promote_types(dtype, torch.float32))
            if place[0] == "select":
                self.shared[place] = IndexSelect(indices.to(device), factors.to(device))
            else:
                start = torch.zeros(len(indices), dim.size, dtype=factors.dtype)
                start[torch.arange(len(indices)), indices] = factors
                # Rotations of tables whose rows are summed are the same: those of any table are all.
                self._rotate(start, indices, *(place[1:] if place[0] == "axis" else (weight, axis)))
                self.shared[place] = Compactor(start.to(device))
        return self.shared[place]

    def _rotate(self, start: Tensor, indices: Tensor, *place: Any) -> None:
        """Replace selection by the rotations of this axis; the factors of its indices stay."""
        for carrier, rotation in self.rotations.items():
            if (carrier.parameter, carrier.axis) == place:
                span = slice(carrier.start, carrier.stop)
                rows = ((indices >= carrier.start) & (indices < carrier.stop)).nonzero()[:, 0]
                start[rows, span] = rotation.to(start) * self._factors(*place)[span].to(start)

    def _place(self, weight: str, axis: int) -> tuple[Any, ...]:
        """Return what identifies the map: the weight's own axis, its table group, or its matrix's axis."""
        dim = self.plan.axes[weight][axis]
        for group in self.plan.tables:
            if weight in group and axis == 1:
                return ("tables", group)
        if _is_matrix(self.plan.axes[weight]):
            return ("axis", weight, axis)
        for sibling in filter(lambda name: _is_matrix(self.plan.axes[name]), _siblings(self.plan, weight)):
            contracted = {use.axis for use in self.plan.weight_inputs if use.weight == sibling}
            for at, other in enumerate(self.plan.axes[sibling]):
                # A vector beside a square weight has the map of the weight's output axis, not of its input axis.
                if key(other) == key(dim) and contracted != {at}:
                    return ("axis", sibling, at)
        return ("select", weight, axis)

    def _scaled(self, weight: str, axis: int) -> bool:
        return bool((self._factors(weight, axis) != 1.0).any())

    def _factors(self, weight: str, axis: int) -> Tensor:
        """Return the factor of each teacher index of an axis: a module's weight and bias share them."""
        dim = self.plan.axes[weight][axis]
        factors = torch.ones(dim.size, dtype=torch.float64)
        for carrier, factor in self.plan.scales.items():
            same_module = carrier.parameter.rpartition(".")[0] == weight.rpartition(".")[0]
            if same_module and key(self.plan.axes[carrier.parameter][carrier.axis]) == key(dim):
                factors[carrier.start : carrier.stop] *= factor
        return factors


def first_indices(plan: Plan) -> dict[Dim, Tensor]:
    """Return index sets of the first indices of every leaf, or of those that match the student's computed tables."""
    return {leaf: torch.arange(plan.targets[leaf]) for leaf in shrinking_leaves(plan)} | dict(plan.matched)


def shrinking_leaves(plan: Plan) -> list[Dim]:
    """Return every leaf of a weight that has fewer indices in the student."""
    found = dict.fromkeys(leaf for axes in plan.axes.values() for dim in axes for leaf in leaves(dim))
    return [leaf for leaf in found if plan.targets.get(leaf, leaf.size) < leaf.size]


def _is_same(one: nn.Module, other: nn.Module) -> bool:
    now = one.state_dict()
    return all(torch.equal(now[entry], tensor.to(now[entry])) for entry, tensor in other.state_dict().items())


def _is_matrix(dims: tuple[Dim, ...]) -> bool:
    return sum(dim.size > 1 for dim in dims) > 1


def _shifted(plan: Plan, weights: Mapping[str, Tensor]) -> set[str]:
    """Return every learned vector that shrinks, and every bias added to the output of a weight that is fitted."""
    biases = {plan.weight_inputs[at].bias for at in plan.fitted}
    vectors = {
        name
        for name, dims in plan.axes.items()
        if isinstance(weights[name], nn.Parameter) and sum(dim.size > 1 for dim in dims) == 1
        if any(plan.size(dim) < dim.size for dim in dims)
    }
    return vectors | {bias for bias in biases if bias is not None}


def _siblings(plan: Plan, weight: str) -> list[str]:
    module = weight.rpartition(".")[0]
    return [name for name in plan.axes if name != weight and name.rpartition(".")[0] == module]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _set_tensor(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(attribute, tensor)
    else:
        module.register_buffer(attribute, tensor)
