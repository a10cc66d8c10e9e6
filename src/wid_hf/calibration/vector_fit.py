"""The vectors that multiply a turned stream: a norm's weight and bias, fitted to the turned teacher's.

A diagonal matrix does not commute with the map T of a turned stream, so the student's vector is the best one for its
own activations: per index `argmin E|(T y)_i - w_i z_i - b_i|^2`, with y the teacher's result and z the student's before
the vector. Called by `reconstruction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic import place_of
from ..coupling.landmark_record import Scaling
from ..coupling.trace import Trace
from ..layers import FoldedWeight
from .lockstep import Operands
from .moments import full

RIDGE = 1e-3  # of the mean variance, towards the diagonal of T diag(w) T^T times one common factor


@dataclass
class _Moments:
    """Sums over positions, per index: of z, z^2, t and z t; `count` positions."""

    count: int
    z: Tensor
    zz: Tensor
    t: Tensor
    zt: Tensor


class VectorFit:
    """Fits weights and biases of norms that stay in turned streams.

    Args:
        trace: has the teacher's weights.
        folded: the student's folded weights.
        maps: for each scaling that is fitted, T `(k, n)` of its stream.
    """

    def __init__(self, trace: Trace, folded: Mapping[str, FoldedWeight], maps: Mapping[Scaling, Tensor]) -> None:
        self._weights = {name: weight.detach() for name, weight in trace.weights.items()}
        self._folded = folded
        self.maps = maps
        self._moments: dict[str, _Moments] = {}  # of a shared norm: all its uses so far

    @torch.no_grad()
    def fit(self, scaling: Scaling, teacher: Operands, student: Operands) -> tuple[str, ...]:
        """Set the student's vectors, correct its activations in place, and return the names of what changed."""
        factors, offsets = self._now(scaling, self._folded[scaling.vector])
        map_ = self.maps[scaling]
        for mine, theirs in zip(teacher, student, strict=True):
            if mine is not None and theirs is not None:
                y = full(mine.rows)
                place = place_of(y.device)
                z = (theirs.rows.to(place, torch.float64) - offsets.to(place)) / factors.to(place)
                target = (y @ map_.to(y).T).to(place, torch.float64)
                self._add(scaling.vector, z, target)
        new, bias = self._solved(scaling)
        for theirs in student:
            if theirs is not None:
                tensor = theirs.tensor
                shape = [-1 if axis == theirs.axis else 1 for axis in range(tensor.ndim)]
                ratio = (new / factors).to(tensor).view(shape)
                tensor.mul_(ratio).add_((bias - offsets * new / factors).to(tensor).view(shape))
        self._folded[scaling.vector].set_vector(self._weights[scaling.vector], new - scaling.offset)
        if scaling.bias is not None:
            self._folded[scaling.bias].set_vector(self._weights[scaling.bias], bias)
        return tuple(name for name in (scaling.vector, scaling.bias) if name is not None)

    def _now(self, scaling: Scaling, folded: FoldedWeight) -> tuple[Tensor, Tensor]:
        """Return what the student multiplies by now, and what it adds, `(k,)` float64."""
        factors = folded.fold(self._weights[scaling.vector]).flatten().cpu().double() + scaling.offset
        if scaling.bias is None:
            return factors, torch.zeros_like(factors)
        return factors, self._folded[scaling.bias].fold(self._weights[scaling.bias]).flatten().cpu().double()

    def _add(self, vector: str, z: Tensor, target: Tensor) -> None:
        new = _Moments(len(z), z.sum(0), z.square().sum(0), target.sum(0), (z * target).sum(0))
        if (old := self._moments.get(vector)) is None:
            self._moments[vector] = new
            return
        old.count += new.count
        for name in ("z", "zz", "t", "zt"):
            getattr(old, name).add_(getattr(new, name))

    def _solved(self, scaling: Scaling) -> tuple[Tensor, Tensor]:
        """Return the best factors and offsets `(k,)` for all positions so far."""
        found = self._moments[scaling.vector]
        z, zz, t, zt = (each.cpu() / found.count for each in (found.z, found.zz, found.t, found.zt))
        if scaling.bias is not None:
            zz, zt = zz - z * z, zt - z * t
        map_ = self.maps[scaling].cpu().double()
        start = (map_ * map_) @ (self._weights[scaling.vector].flatten().cpu().double() + scaling.offset)
        common = (zt * start).sum() / (zz * start * start).sum().clamp(min=torch.finfo(torch.float64).tiny)
        pull = RIDGE * zz.mean()
        factors = (zt + pull * common * start) / (zz + pull).clamp(min=torch.finfo(torch.float64).tiny)
        return factors, t - factors * z if scaling.bias is not None else torch.zeros_like(factors)
