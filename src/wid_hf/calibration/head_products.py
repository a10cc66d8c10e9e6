"""Which widths inside attention heads may be rotated by any matrix, and where the rotation is undone.

Takes the trace and the plan; gives for each such leaf the rows that compute it and the weight inputs that contract it.
Called by `initialize`; `head_rotation` finds the rotations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim, leaves
from ..coupling.plan import Plan
from ..coupling.trace import Trace
from .axis_blocks import part_factors, pieces


@dataclass
class HeadProducts:
    """The places where a leaf inside heads is computed and contracted.

    Attributes:
        left: ranges of rows whose outputs are multiplied with those of `right` (queries).
        right: the others (keys).
        written: ranges of rows whose outputs reach weight inputs, mixed over positions only (values).
        weight_inputs: numbers of those weight inputs (of output projections).
    """

    left: set[Carrier] = field(default_factory=set)
    right: set[Carrier] = field(default_factory=set)
    written: set[Carrier] = field(default_factory=set)
    weight_inputs: list[int] = field(default_factory=list)

    @property
    def makers(self) -> set[Carrier]:
        """Every range of rows that computes the leaf."""
        return self.left | self.right | self.written


def rotatable_heads(trace: Trace, plan: Plan) -> dict[Dim, HeadProducts]:
    """Return the shrinking leaves inside heads that may be rotated by any matrix, with the places where it is undone.

    Only linear operations use such a leaf, and it occurs only in rows whose outputs are multiplied with each other or
    contracted with a weight, and in the biases of these rows, which are rotated as well.
    """
    shrinking = {leaf for leaf, size in plan.targets.items() if size < leaf.size}
    free = shrinking.difference(plan.matched, trace.aligned)
    return {
        leaf: products
        for leaf, products in _products(trace, plan).items()
        if leaf in free
        and _is_one_sided(products)
        and _have_known_inputs(plan, products)
        and _occurs_nowhere_else(plan, leaf, products)
    }


def whole_axis(plan: Plan, at: int) -> Carrier:
    """Return the whole axis along which weight input number `at` is contracted."""
    weight_input = plan.weight_inputs[at]
    axis = plan.dim_of(weight_input)
    return Carrier(weight_input.weight, weight_input.axis, 0, axis.size)


def _products(trace: Trace, plan: Plan) -> dict[Dim, HeadProducts]:
    found: dict[Dim, HeadProducts] = defaultdict(HeadProducts)
    for right, left in trace.carried_by.items():
        if (leaf := _inner(plan, left)) is not None and leaf is _inner(plan, right):
            found[leaf].left.add(left)
            found[leaf].right.add(right)
    for at, weight_input in enumerate(plan.weight_inputs):
        if weight_input.carrier is None or (leaf := _inner(plan, weight_input.carrier)) is None:
            continue
        if leaf is _inner(plan, whole_axis(plan, at)):
            found[leaf].written.add(weight_input.carrier)
            found[leaf].weight_inputs.append(at)
    return found


def _inner(plan: Plan, carrier: Carrier) -> Dim | None:
    """Return the innermost factor of a range of a matrix's axis, if all its factors are leaves."""
    axes = plan.axes[carrier.parameter]
    factors = part_factors(axes[carrier.axis], carrier.start, carrier.stop)
    return factors[-1] if len(axes) == 2 and factors and all(factor.is_leaf for factor in factors) else None


def _is_one_sided(products: HeadProducts) -> bool:
    """Return whether the leaf is contracted in products or with weights, not both, and on one side of each only."""
    return bool(products.left) != bool(products.written) and products.left.isdisjoint(products.right)


def _have_known_inputs(plan: Plan, products: HeadProducts) -> bool:
    """Return whether the moments of the outputs of these rows follow from those of their inputs.

    They do not for rows that are looked up, or whose weight is not contracted along its other axis.
    """
    contracted = _contracted_axes(plan)
    return all(
        carrier.parameter not in plan.looked_up and contracted[carrier.parameter] == {1 - carrier.axis}
        for carrier in products.makers
    )


def _occurs_nowhere_else(plan: Plan, leaf: Dim, products: HeadProducts) -> bool:
    """Return whether every part with `leaf` computes it, is contracted along it, or is a bias of rows that do."""
    contracted = _contracted_axes(plan)
    makers = products.makers
    weights = {carrier.parameter for carrier in makers}
    biases = {weight_input.bias for weight_input in plan.weight_inputs if weight_input.weight in weights}
    undone = {(place.parameter, place.axis) for place in (whole_axis(plan, at) for at in products.weight_inputs)}
    return all(
        place in makers
        or ((place.parameter, place.axis) in undone and contracted[place.parameter] == {place.axis})
        or (place.parameter in biases and len(plan.axes[place.parameter]) == 1)
        for place in _parts_with(plan, leaf)
    )


def _parts_with(plan: Plan, leaf: Dim) -> Iterator[Carrier]:
    """Yield every part of every axis that has `leaf` in it."""
    for weight, axes in plan.axes.items():
        for axis, dim in enumerate(axes):
            for start, part in pieces(dim):
                if leaf in set(leaves(part)):
                    yield Carrier(weight, axis, start, start + part.size)


def _contracted_axes(plan: Plan) -> dict[str, set[int]]:
    axes: dict[str, set[int]] = defaultdict(set)
    for weight_input in plan.weight_inputs:
        axes[weight_input.weight].add(weight_input.axis)
    return axes
