"""The map of a student's axis from the teacher's, read off the weights that write it.

Takes a student at its start; gives for the tree of an axis its map `(k, n)`. Called by the tuner.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...coupling.dims import Dim
from ...coupling.index_sets import IndexSets, axis_indices
from ...coupling.plan import Plan, key
from ...layers.compactor import Compactor
from ...layers.folded_weight import folded_weights


class AxisMaps:
    """Maps from teacher to student of the axes that tensors have: made once, before anything is refined.

    An axis that some weight writes has the map of that weight's outputs, which may be a rotation; another one selects.

    Args:
        student: an installed student at its start.
        plan: trees and sizes.
        sets: the index set of every leaf that selects.
    """

    def __init__(self, student: nn.Module, plan: Plan, sets: IndexSets) -> None:
        contracted = {(use.weight, use.axis) for use in plan.weight_inputs}
        self._plan, self._sets = plan, sets
        self._written = {
            key(plan.axes[name][int(axis)]): module.matrix.detach().clone()
            for name, weight in folded_weights(student).items()
            if name in plan.axes
            for axis, module in weight.maps.items()
            if isinstance(module, Compactor) and (name, int(axis)) not in contracted
        }

    def __call__(self, dim: Dim) -> Tensor:
        """Return the map `(k, n)` of an axis; the identity where it does not shrink."""
        written = self._written.get(key(dim))
        if written is not None:
            return written
        return torch.eye(dim.size)[axis_indices(self._plan, dim, self._sets)]
