"""PCA rotation of the residual stream of a model with RMS norms, instead of selected indices.

The norm of a vector is the same in every orthogonal basis, so an RMS norm without a weight commutes with a rotation:
the norm's weight goes into the matrices after it, and the student's stream is `Q^T x` with `Q (n, k)` orthonormal
(SliceGPT, Ashkboos and others 2024, section 3). Takes a teacher with its trace and plan, finds the stream that may be
rotated and proves it, gathers its moments, and gives the maps. Called by `initialize`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..coupling.carrier import Carrier
from ..coupling.dims import Dim, leaves
from ..coupling.plan import Plan, key
from ..coupling.trace import Trace, quiet_forward
from ..coupling.verify import outputs_with
from ..coupling.weight_inputs import WeightInput
from .moment_pass import InputMoments
from .norm_scale import scaling_vector

TOLERANCE = 1e-3  # of the largest output, in float32: rounding of a deep model, far below what another norm changes


@dataclass(frozen=True)
class Stream:
    """A coupled dimension that any orthogonal matrix may rotate.

    Attributes:
        leaf: the dimension.
        norms: for each weight contracted along it, `(weight, axis)`, the weight of the norm that computes its input.
        unfolded: the norm weight that is not multiplied into the next table, because its rows are looked up as well.
    """

    leaf: Dim
    norms: Mapping[tuple[str, int], str]
    unfolded: str | None

    def maps(self, plan: Plan, weights: Mapping[str, Tensor], basis: Tensor) -> dict[Carrier, Tensor]:
        """Return for every matrix and bias along the stream the map `(k, n)` that `basis (n, k)` gives it."""
        found = {}
        for name, axes in plan.axes.items():
            for axis, dim in enumerate(axes):
                if key(dim) == key(self.leaf) and name not in self.norms.values():
                    norm = self.norms.get((name, axis))
                    columns = basis
                    if norm is not None and norm != self.unfolded:
                        columns = weights[norm].to(basis)[:, None] * basis
                    found[Carrier(name, axis, 0, dim.size)] = columns.T
        return found


class StreamRotation:
    """Second moments of a stream after its norms, without the norms' weights; all norms count alike.

    Args:
        trace: has the weights.
        plan: how wide the stream becomes.
        stream: the stream; None if none may be rotated: nothing is gathered.
    """

    def __init__(self, trace: Trace, plan: Plan, stream: Stream | None) -> None:
        self._weights = {name: weight.detach() for name, weight in trace.weights.items()}
        self._plan = plan
        self._stream = stream
        self._normed: dict[str, Tensor] = {}

    def needs(self, at: int) -> bool:
        """Return whether one of the stream's norms computes the weight input."""
        return self._norm(self._plan.weight_inputs[at]) is not None

    def add(self, moments: InputMoments) -> None:
        """Keep the moments of the weight input if it is the first after its norm."""
        norm = self._norm(moments.weight_input)
        if norm is None or norm in self._normed:
            return
        weight = self._weights[norm].to(moments.covariance.mean)
        inverse = torch.where(weight == 0, 0, 1 / weight)
        normed = inverse[:, None] * moments.covariance.matrix(centred=False) * inverse
        self._normed[norm] = (normed / normed.trace().clamp(min=torch.finfo(torch.float64).tiny)).cpu()

    def maps(self) -> tuple[dict[Carrier, Tensor], dict[str, Tensor]]:
        """Return the maps `(k, n)` of all axes along the stream, and the student's weight `(k,)` of each norm.

        The basis is the leading eigenvectors of the moments. The student's norm divides by the mean of k squares, the
        teacher's by that of n.
        """
        stream = self._stream
        if stream is None:
            return {}, {}
        n, k = stream.leaf.size, self._plan.targets[stream.leaf]
        moments = torch.stack(list(self._normed.values())).sum(0)
        basis = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :k]
        ones = torch.ones(k, dtype=basis.dtype, device=basis.device)
        norm_weights = dict.fromkeys(stream.norms.values(), ones)
        if stream.unfolded is not None:
            # Any rotation within the span is as good: take the one that makes this weight diagonal, as it must be.
            scale = self._weights[stream.unfolded].to(basis)
            norm_weights[stream.unfolded], within = torch.linalg.eigh(basis.T @ (scale[:, None] * basis))
            basis = basis @ within
        maps = stream.maps(self._plan, self._weights, basis)
        return maps, {name: weight * (n / k) ** 0.5 for name, weight in norm_weights.items()}

    def _norm(self, weight_input: WeightInput) -> str | None:
        return self._stream.norms.get((weight_input.weight, weight_input.axis)) if self._stream is not None else None


@torch.no_grad()
def rotatable_stream(teacher: nn.Module, trace: Trace, plan: Plan) -> Stream | None:
    """Return the stream that may be rotated, or None.

    A candidate is a shrinking leaf that is a whole axis wherever it occurs, whose vectors are either in a module with
    a matrix or the weights of norms that compute weight inputs. It is proved: with every weight along it rotated by a
    random orthogonal matrix, and norm weights folded, the teacher gives the same outputs for the traced examples.
    The proof needs a second copy of the teacher's weights, in float32 at least.
    """
    sized = [leaf for leaf, size in plan.targets.items() if size < leaf.size and leaf not in plan.matched]
    candidates = [stream for leaf in sized if (stream := _candidate(plan, trace, leaf)) is not None]
    return next((stream for stream in candidates if _keeps_outputs(teacher, trace, plan, stream)), None)


def _candidate(plan: Plan, trace: Trace, leaf: Dim) -> Stream | None:
    if any(leaf in leaves(dim) for dims in trace.output_dims for dim in dims):
        return None  # callers of the model expect the teacher's indices in this output
    scaled = list(_scaled_inputs(plan, leaf))
    norms = dict(scaled)
    unfolded = {norm for (weight, _), norm in scaled if weight in plan.looked_up}
    if not norms or len(unfolded) > 1 or not _rotates_whole(plan, leaf, set(norms.values())):
        return None
    return Stream(leaf, norms, next(iter(unfolded), None))


def _scaled_inputs(plan: Plan, leaf: Dim) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield each `(weight, axis)` contracted along `leaf` whose input was last scaled by a vector, with its name."""
    for weight_input in plan.weight_inputs:
        vector = scaling_vector(plan, weight_input)
        if vector is not None and key(plan.dim_of(weight_input)) == key(leaf):
            yield (weight_input.weight, weight_input.axis), vector


def _rotates_whole(plan: Plan, leaf: Dim, norms: Collection[str]) -> bool:
    """Return whether `leaf` is always a whole axis, and each vector a norm's weight or in a module with a matrix."""
    along = {name: [dim for dim in axes if leaf in leaves(dim)] for name, axes in plan.axes.items()}
    lone = {name for name, dims in along.items() if dims and len(plan.axes[name]) == 1}.difference(norms)
    is_whole = all(key(dim) == key(leaf) for dims in along.values() for dim in dims)
    return is_whole and {_module(name) for name in lone} <= _modules_of_matrices(plan)


def _modules_of_matrices(plan: Plan) -> set[str]:
    return {_module(name) for name, axes in plan.axes.items() if sum(dim.size > 1 for dim in axes) > 1}


def _module(weight: str) -> str:
    return weight.rpartition(".")[0]


def _keeps_outputs(teacher: nn.Module, trace: Trace, plan: Plan, stream: Stream) -> bool:
    """Return whether a random rotation of the whole stream leaves the outputs as they are."""
    weights = {name: _full(weight.detach()) for name, weight in trace.weights.items()}
    if stream.unfolded is not None:  # this weight is not rotated, so it must not decide
        weights[stream.unfolded] = torch.ones_like(weights[stream.unfolded])
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(stream.leaf.size, stream.leaf.size, dtype=torch.float32, generator=generator)).Q
    rotated = dict(weights)
    device = weights[next(iter(stream.norms.values()))].device
    for place, map_ in stream.maps(plan, weights, basis.to(device)).items():
        weight = rotated[place.parameter]
        along = torch.tensordot(weight, map_.to(weight.dtype), dims=([place.axis], [1]))
        rotated[place.parameter] = along.movedim(-1, place.axis)
    for name in stream.norms.values():
        rotated[name] = torch.ones_like(rotated[name])
    with quiet_forward(teacher):
        before, after = (outputs_with(teacher, plan, trace, each, {}) for each in (weights, rotated))
    return all(
        torch.allclose(old, new, rtol=0, atol=TOLERANCE * float(old.abs().max()))
        for old, new in zip(before, after, strict=True)
        if old.is_floating_point()
    )


def _full(weight: Tensor) -> Tensor:
    """Return a weight in float32 at least; integers are returned unchanged."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) if weight.is_floating_point() else weight
