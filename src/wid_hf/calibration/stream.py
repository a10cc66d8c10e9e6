"""Streams that may be turned: residual streams that keep combinations of their indices instead of some of them.

A linear map commutes with everything that a residual stream meets, except with multiplications by vectors (the weights
of norms): those before a matrix go into the matrix, those that stay in the stream are fitted. Takes a teacher with its
trace and plan, finds such streams, and proves them. Called by `initialize`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ..coupling.dims import Dim, key, leaves
from ..coupling.landmark_record import Scaling
from ..coupling.plan import Plan
from ..coupling.trace import Trace, call, forget, output_tensors, quiet_forward
from .moments import full

TOLERANCE = 1e-3  # of the largest output, in float32: rounding of a deep model, far below what another norm changes
Place = tuple[str, int]  # a weight and one of its axes


@dataclass(frozen=True)
class Stream:
    """A coupled dimension, or a part of one, that any orthogonal matrix may turn.

    Attributes:
        leaf: the dimension.
        spaces: numbers of its spaces (see `coupling.spaces`), each before or after a multiplication by a vector.
        centred: whether norms subtract the mean over indices: then only matrices that keep the vector of ones may
            turn it.
        axes: every axis of a weight along the stream, but for the vectors of `folded` and `fitted`.
        folded: multiplications by a vector whose results only matrices take: the vector goes into these matrices.
        fitted: all other ones.
        readers: for each weight that a folded one's result is contracted with, that one.
        tied: tables of this stream that are contracted with the result of one of `folded` as well.
        heads: tables of this stream that are contracted with something that may not be turned.
        is_output: whether callers of the model see the stream.
    """

    leaf: Dim
    spaces: frozenset[int]
    centred: bool
    axes: frozenset[Place]
    folded: tuple[Scaling, ...]
    fitted: tuple[Scaling, ...]
    readers: Mapping[Place, Scaling]
    tied: frozenset[str]
    heads: frozenset[str]
    is_output: bool


@torch.no_grad()
def turnable_streams(teacher: nn.Module, trace: Trace, plan: Plan, outputs_too: bool) -> list[Stream]:
    """Return every stream that may be turned.

    A candidate is a shrinking leaf that is a whole axis wherever it occurs, without what only a table that is looked
    up as well connects with the rest. It is proved: with every vector constant and every weight along the stream
    turned by a random orthogonal matrix, the teacher gives the same outputs for the traced examples. The proof needs
    a second copy of the teacher's weights, in float32 at least.

    Args:
        teacher: the model.
        trace: its trace.
        plan: sizes.
        outputs_too: whether a stream that callers see may be turned.
    """
    found = []
    for leaf, size in plan.targets.items():
        if size == leaf.size or leaf in plan.matched or not _is_whole(plan, leaf):
            continue
        for spaces in _parts(plan, leaf):
            stream = _stream(plan, leaf, spaces)
            # Without any norm it is the inside of a block.
            if (stream.folded or stream.fitted) and (outputs_too or not stream.is_output):
                found += _Proof(teacher, trace, stream).proved()
    return found


def _is_whole(plan: Plan, leaf: Dim) -> bool:
    return all(key(dim) == key(leaf) for axes in plan.axes.values() for dim in axes if leaf in leaves(dim))


def _parts(plan: Plan, leaf: Dim) -> list[frozenset[int]]:
    """Return the groups of spaces of a leaf that multiplications by vectors connect, if they have a looked-up table.

    A group without any is a head between the stream and a tied table, unless no other group exists.
    """
    places = plan.landmarks.spaces
    own = {
        (weight, axis, contracted): space
        for (weight, axis, contracted), space in places.items()
        if axis >= 0 and weight in plan.axes and key(plan.axes[weight][axis]) == key(leaf)
    }
    linked: dict[int, set[int]] = {space: {space} for space in own.values()}
    for scaling in plan.landmarks.scalings:
        if scaling.after in linked or scaling.before in linked:
            _link(linked, scaling.before, scaling.after)
    groups = {frozenset(group) for group in linked.values()}
    # A table's rows lie in one space, the input that it is contracted with in another: only the first may be turned
    # with the table.
    heads = {
        space
        for (weight, axis, contracted), space in own.items()
        if contracted and weight in plan.looked_up and (weight, axis, False) in own
    }
    rows = {space for (weight, _, contracted), space in own.items() if not contracted and weight in plan.looked_up}
    return sorted((group for group in groups if not group & heads or group & rows), key=min)


def _link(linked: dict[int, set[int]], one: int, other: int) -> None:
    both = linked.setdefault(one, {one}) | linked.setdefault(other, {other})
    for space in both:
        linked[space] = both


def _stream(plan: Plan, leaf: Dim, spaces: frozenset[int]) -> Stream:
    landmarks = plan.landmarks
    inside: dict[int, set[tuple[str, int, bool]]] = defaultdict(set)
    for place, space in landmarks.spaces.items():
        inside[space].add(place)
    outputs = {space for axes in landmarks.outputs for space in axes} & spaces
    scalings = _once(each for each in landmarks.scalings if each.after in spaces)
    vectors = {name for each in scalings for name in (each.vector, each.bias)}
    befores = {each.before for each in scalings}
    folded = tuple(
        each
        for each in scalings
        if each.after not in outputs | befores
        and all(contracted or weight in vectors for weight, _, contracted in inside[each.after])
        and sum(other.vector == each.vector for other in scalings) == 1
    )
    readers = {(weight, axis): each for each in folded for weight, axis, contracted in inside[each.after] if contracted}
    axes = {
        (weight, axis, contracted)
        for space in spaces
        for weight, axis, contracted in inside[space]
        if weight not in vectors
    }
    rows = {weight for weight, _, contracted in axes if not contracted and weight in plan.looked_up}
    elsewhere = {
        weight
        for (weight, _, contracted), space in landmarks.spaces.items()
        if contracted and weight in rows and space not in spaces
    }
    return Stream(
        leaf,
        spaces,
        False,
        frozenset((weight, axis) for weight, axis, _ in axes),
        folded,
        tuple(each for each in scalings if each not in folded),
        readers,
        frozenset(weight for weight, _ in readers if weight in rows),
        frozenset(elsewhere),
        bool(outputs),
    )


def _once(scalings: Iterable[Scaling]) -> list[Scaling]:
    return list(dict.fromkeys(scalings))


class _Proof:
    """Proves by random turns that a stream may be turned."""

    def __init__(self, teacher: nn.Module, trace: Trace, stream: Stream) -> None:
        self._teacher, self._trace, self._stream = teacher, trace, stream
        self._weights = {name: _full(weight.detach()) for name, weight in trace.weights.items()}
        for scaling in (*stream.folded, *stream.fitted):  # they are folded or fitted: they must not decide
            self._weights[scaling.vector] = torch.full_like(self._weights[scaling.vector], 1 - scaling.offset)
            if scaling.bias is not None:
                self._weights[scaling.bias] = torch.zeros_like(self._weights[scaling.bias])

    def proved(self) -> list[Stream]:
        """Return the stream as it may be turned: by any orthogonal matrix, by those that keep ones, or not at all."""
        with quiet_forward(self._teacher):
            before = self._outputs(self._weights, None)
            for centred in (False, True):
                turn = random_turn(self._stream.leaf.size, centred).to(next(iter(self._weights.values())).device)
                if self._keeps(before, turn):
                    return [replace(self._stream, centred=centred)]
        return []

    def _keeps(self, before: Sequence[Tensor], turn: Tensor) -> bool:
        """Return whether a turn of the whole stream leaves the outputs as they are, but for turning its own."""
        turned = dict(self._weights)
        for name, axis in self._stream.axes:
            if name not in self._stream.heads:
                turned[name] = _along(self._weights[name], turn, axis)
        return all(
            bool(((new - old).abs() <= TOLERANCE * old.abs().max()).all())  # false where one is NaN
            for old, new in zip(before, self._outputs(turned, turn), strict=True)
            if old.is_floating_point()
        )

    def _outputs(self, weights: Mapping[str, Tensor], turn: Tensor | None) -> list[Tensor]:
        """Return the outputs of all examples; those along the stream as they are when it is not turned."""
        found: list[Tensor] = []
        landmarks, inside = self._trace.landmarks, self._stream.spaces
        tables = {id(weights[name]) for name in self._stream.heads} if turn is not None else set()
        for number, example in enumerate(self._trace.examples):
            forget(self._teacher)
            torch.manual_seed(0)  # a forward that draws numbers (ViLT chooses patches) draws the same each time
            inputs = {
                name: _full(given) if isinstance(given, Tensor) else given for name, given in example.inputs.items()
            }
            for name in example.streams:
                if turn is not None and landmarks.streams.get((number, name)) in inside:
                    inputs[name] = inputs[name].to(turn.dtype) @ turn.T
            rolled = {name: weights[name].roll(by, 0) for name, by in example.rolled.items()}
            with _TurnedRows(tables, turn):
                outputs = output_tensors(call(self._teacher, example.part, inputs, {**weights, **rolled}))
            found += [
                _turned_back(tensor, axes, inside, turn)
                for tensor, axes in zip(outputs, landmarks.outputs[len(found) :], strict=False)
            ]
        return found


def _turned_back(tensor: Tensor, axes: Sequence[int], inside: Collection[int], turn: Tensor | None) -> Tensor:
    for axis, space in enumerate(axes):
        if turn is not None and space in inside:
            tensor = _along(tensor, turn.T, axis)
    return tensor


def random_turn(size: int, centred: bool) -> Tensor:
    """Return a random orthogonal matrix `(n, n)`, the same at each call; one that keeps the vector of ones if asked."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    if not centred:
        return torch.linalg.qr(matrix).Q.float()
    ones = torch.ones(size, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, matrix[:, 1:]], 1)).Q  # the first column is the vector of ones
    inner = torch.linalg.qr(matrix[1:, 1:]).Q
    return (basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner) @ basis.T).float()


class _TurnedRows(TorchDispatchMode):
    """Turns the rows that are looked up in some tables, while the tables stay as they are for everything else."""

    def __init__(self, tables: set[int], turn: Tensor | None) -> None:
        super().__init__()
        self._tables, self._turn = tables, turn

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._turn is not None and func.overloadpacket is torch.ops.aten.embedding and id(args[0]) in self._tables:
            return _along(out, self._turn, -1)
        return out


def _along(tensor: Tensor, turn: Tensor, axis: int) -> Tensor:
    return torch.tensordot(tensor, turn.to(tensor.dtype), dims=([axis], [1])).movedim(-1, axis)


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least; integers are returned unchanged."""
    return full(tensor) if tensor.is_floating_point() else tensor
