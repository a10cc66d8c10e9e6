"""The map of a student's axis from the teacher's, as the start made it.

Takes a start; gives for the tree of an axis its map `(k, n)`. Called by the tuner.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...coupling.dims import Dim, find
from ...coupling.index_sets import IndexSets, axis_indices
from ...coupling.plan import Plan


class AxisMaps:
    """Maps from teacher to student of the axes that tensors have.

    Args:
        plan: trees and sizes.
        sets: the index set of every leaf that selects.
        turned: T `(k, n)` of every turned leaf.
    """

    def __init__(self, plan: Plan, sets: IndexSets, turned: Mapping[Dim, Tensor]) -> None:
        self._plan, self._sets = plan, sets
        self._turned = {find(leaf): map_ for leaf, map_ in turned.items()}

    def __call__(self, dim: Dim) -> Tensor:
        """Return the map `(k, n)` of an axis; the identity where it does not shrink."""
        map_ = self._turned.get(find(dim))
        return map_ if map_ is not None else torch.eye(dim.size)[axis_indices(self._plan, dim, self._sets)]
