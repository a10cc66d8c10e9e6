"""Streams that calibration turned: an index of the student is a combination of the teacher's, not one of them.

Takes the map of each such leaf from calibration or from a saved adapter; gives the map of an axis. Called by the tuner
and by losses that compare the student's activations with the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..coupling import Dim, Plan
from ..coupling.dims import find, leaves, parts_of
from ..layers import shrinking_leaves


class TurnedStreams(nn.Module):
    """The maps `T (k, n)` of leaves along which the student's activations are `T x` of the teacher's `x`.

    They are buffers, named by the number of the leaf among those that shrink, so that an adapter holds them. A leaf
    without one keeps indices.

    Args:
        plan: the coupled dimensions.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._numbers = {leaf: str(at) for at, leaf in enumerate(shrinking_leaves(plan))}

    def replace(self, maps: Mapping[Dim, Tensor]) -> None:
        """Have these maps `(k, n)` and no others."""
        self._buffers.clear()
        for leaf, matrix in maps.items():
            self.register_buffer(self._numbers[find(leaf)], matrix)

    def follow(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Have the maps that an adapter holds, by their names here; what fits no leaf is left out."""
        leaf_of = {number: leaf for leaf, number in self._numbers.items()}
        fits = {leaf_of[name]: matrix.to(device) for name, matrix in saved.items() if name in leaf_of}
        self.replace({leaf: m for leaf, m in fits.items() if m.shape == (self._plan.size(leaf), leaf.size)})

    def of(self, dim: Dim) -> Tensor | None:
        """Return the map `(k, n)` of a leaf that was turned; None for any other dimension."""
        number = self._numbers.get(find(dim))
        return self._buffers.get(number) if number is not None else None

    def touches(self, dim: Dim) -> bool:
        """Return whether any leaf of the axis `dim` was turned."""
        return any(self.of(leaf) is not None for leaf in leaves(dim))

    def axis_map(self, dim: Dim, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the map `(n, k)` of an axis: the student's activations `(..., k)` are the teacher's times it.

        Args:
            dim: the axis: a leaf, several behind each other, or any axis of which nothing was turned.
            indices: `(k,)` the teacher's indices that it keeps; those of turned leaves are not used.
            dtype: of the result, where nothing was turned.
        """
        if (turned := self.of(dim)) is not None:
            return turned.T
        if not self.touches(dim):
            return functional.one_hot(indices, find(dim).size).T.to(dtype)
        parts = parts_of(dim)
        assert len(parts) > 1, "a turned leaf is an axis or a part of one, never a factor"
        offsets = accumulate((part.size for part in parts[:-1]), initial=0)
        pieces = indices.split([self._plan.size(part) for part in parts])
        return torch.block_diag(
            *(self.axis_map(part, piece - at, dtype) for part, piece, at in zip(parts, pieces, offsets, strict=True))
        )


def turn(activations: Tensor, axis_map: Tensor) -> Tensor:
    """Return `activations (..., n) @ axis_map (n, k)`, `(..., k)` in float32 or more, also under autocast."""
    with torch.autocast(activations.device.type, enabled=False):
        return activations.to(torch.promote_types(activations.dtype, axis_map.dtype)) @ axis_map
