"""An orthogonal basis for the stream of a model with RMS norms, in place of selected indices.

The norm of a vector is the same in every orthogonal basis, so an RMS norm without a weight commutes with it: the
norm's weight goes into what reads, and the student's stream is `Q^T x` with `Q (n, k)` orthonormal (SliceGPT, Ashkboos
and others 2024, section 3). Takes a teacher with its trace and plan, finds the stream that may be turned and proves
it; `survey` gathers the moments and takes the maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim, leaves
from ..coupling.plan import Plan, key
from ..coupling.trace import Trace, quiet_forward
from ..coupling.verify import outputs_with

TOLERANCE = 1e-3  # of the largest output, in float32: rounding of a deep model, far below what another norm changes


@dataclass(frozen=True)
class Stream:
    """A coupled dimension that any orthogonal matrix may turn.

    Attributes:
        leaf: the dimension.
        norms: the weight of the norm that makes what is read, for each read `(weight, axis)`.
        unfolded: that norm's weight which a table does not take over, because its rows are looked up as well.
    """

    leaf: Dim
    norms: Mapping[tuple[str, int], str]
    unfolded: str | None

    def maps(self, plan: Plan, weights: Mapping[str, Tensor], basis: Tensor) -> dict[Carrier, Tensor]:
        """Return for every matrix and bias along the stream the map `(k, n)` that `basis (n, k)` gives it."""
        found = {}
        for name, axes in plan.axes.items():
            for axis, dim in enumerate(axes):
                if dim.size == self.leaf.size and key(dim) == key(self.leaf) and name not in self.norms.values():
                    norm = self.norms.get((name, axis))
                    columns = basis
                    if norm is not None and norm != self.unfolded:
                        columns = weights[norm].to(basis)[:, None] * basis
                    found[Carrier(name, axis, 0, dim.size)] = columns.T
        return found

    def start(
        self, plan: Plan, weights: Mapping[str, Tensor], moments: Tensor
    ) -> tuple[dict[Carrier, Tensor], dict[str, Tensor]]:
        """Return the maps of the leading eigenvectors of `moments (n, n)`, and what each norm's weight `(k,)` becomes.

        The student's norm divides by the mean of k squares, the teacher's by that of n.
        """
        n, k = self.leaf.size, plan.targets[self.leaf]
        basis = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :k]
        ones = torch.ones(k, dtype=basis.dtype, device=basis.device)
        vectors = dict.fromkeys(self.norms.values(), ones)
        if self.unfolded is not None:
            # Turned within its span the basis is as good: let this weight be as diagonal there as a weight must be.
            scale = weights[self.unfolded].detach().to(basis)
            vectors[self.unfolded], turn = torch.linalg.eigh(basis.T @ (scale[:, None] * basis))
            basis = basis @ turn
        maps = self.maps(plan, {name: weight.detach() for name, weight in weights.items()}, basis)
        return maps, {name: vector * (n / k) ** 0.5 for name, vector in vectors.items()}


@torch.no_grad()
def turnable_stream(teacher: nn.Module, trace: Trace, plan: Plan) -> Stream | None:
    """Return the stream that may be turned, or None.

    A candidate is a shrinking leaf that is an axis by itself wherever it stands, whose vectors are either beside a
    matrix or the weights of norms that make what is read. It is proved: with every weight along it turned by a random
    orthogonal matrix, and norm weights folded, the teacher gives the same outputs for the examples that were traced.
    For the proof there is a second copy of the teacher's weights, in float32 at least.
    """
    sized = [leaf for leaf, size in plan.targets.items() if size < leaf.size and leaf not in plan.matched]
    candidates = [stream for leaf in sized if (stream := _candidate(plan, trace, leaf)) is not None]
    return next((stream for stream in candidates if _turns(teacher, trace, plan, stream)), None)


def _candidate(plan: Plan, trace: Trace, leaf: Dim) -> Stream | None:
    if any(leaf in leaves(dim) for dims in trace.output_dims for dim in dims):
        return None  # whoever takes this output expects the teacher's indices
    norms, unfolded = {}, set()
    for read in plan.weight_inputs:
        if read.carrier is not None and key(plan.axes[read.weight][read.axis]) == key(leaf):
            name = read.carrier.parameter
            if len(plan.axes[name]) != 1 or read.carrier != Carrier(name, 0, 0, leaf.size):
                continue
            norms[read.weight, read.axis] = name
            if read.weight in plan.looked_up:
                unfolded.add(name)
    if not norms or len(unfolded) > 1:
        return None
    beside = {name.rpartition(".")[0] for name, axes in plan.axes.items() if sum(dim.size > 1 for dim in axes) > 1}
    for name, axes in plan.axes.items():
        along = [dim for dim in axes if leaf in leaves(dim)]
        if any(key(dim) != key(leaf) for dim in along):
            return None
        if along and len(axes) == 1 and name not in norms.values() and name.rpartition(".")[0] not in beside:
            return None
    return Stream(leaf, norms, next(iter(unfolded), None))


def _turns(teacher: nn.Module, trace: Trace, plan: Plan, stream: Stream) -> bool:
    """Return whether a random turn of the whole stream leaves the outputs as they are."""
    weights = {
        name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        if weight.is_floating_point() else weight.detach()
        for name, weight in trace.weights.items()
    }  # fmt: skip
    if stream.unfolded is not None:  # what no table takes over is no part of the question
        weights[stream.unfolded] = torch.ones_like(weights[stream.unfolded])
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(stream.leaf.size, stream.leaf.size, dtype=torch.float32, generator=generator)).Q
    turned = dict(weights)
    device = weights[next(iter(stream.norms.values()))].device
    for place, map_ in stream.maps(plan, weights, basis.to(device)).items():
        turned[place.parameter] = torch.tensordot(
            turned[place.parameter], map_.to(turned[place.parameter].dtype), dims=([place.axis], [1])
        ).movedim(-1, place.axis)
    for name in stream.norms.values():
        turned[name] = torch.ones_like(turned[name])
    with quiet_forward(teacher):
        before, after = (outputs_with(teacher, plan, trace, each, {}) for each in (weights, turned))
    return all(
        torch.allclose(old, new, rtol=0, atol=TOLERANCE * float(old.abs().max()))
        for old, new in zip(before, after, strict=True)
        if old.is_floating_point()
    )
