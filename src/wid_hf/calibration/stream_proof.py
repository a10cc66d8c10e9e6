"""The proof that streams may be turned: turned at random, the teacher gives the same outputs.

Takes a teacher with its trace and plan, gives the candidates of `stream` that pass. Called by `initialize`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..coupling.dims import Dim
from ..coupling.plan import Plan
from ..coupling.trace import Trace, call, forget, output_tensors, quiet_forward
from .moments import full
from .stream import Stream, candidate_streams

TOLERANCE = 1e-3  # of the largest output, in float32: rounding of a deep model, far below what another norm changes


@torch.no_grad()
def turnable_streams(teacher: nn.Module, trace: Trace, plan: Plan, outputs_too: bool) -> list[Stream]:
    """Return every stream that may be turned, at most one of each leaf, since a leaf has one map.

    A candidate is proved: with every vector constant and every weight along the stream turned by a random orthogonal
    matrix, the teacher gives the same outputs for the traced examples. Each weight is scaled and turned where an
    operation takes it, in float32 at least, so no more than that weight is copied.

    Args:
        teacher: the model.
        trace: its trace.
        plan: sizes.
        outputs_too: whether a stream that callers see may be turned.
    """
    candidates = list(candidate_streams(plan, outputs_too))
    if not candidates:
        return []
    found: dict[Dim, Stream] = {}
    for candidate in candidates:
        if candidate.leaf in found:
            continue
        if (stream := _Proof(teacher, trace, plan, candidate).proved()) is not None:
            found[stream.leaf] = stream
    return list(found.values())


class _Proof:
    """Proves by random turns that a stream may be turned."""

    def __init__(self, teacher: nn.Module, trace: Trace, plan: Plan, stream: Stream) -> None:
        self._teacher, self._trace, self._stream = teacher, trace, stream
        self._landmarks = plan.landmarks
        self._constant: dict[str, float] = {}
        for scaling in (*stream.folded, *stream.fitted):  # they are folded or fitted: they must not decide
            self._constant[scaling.vector] = 1 - scaling.offset
            if scaling.bias is not None:
                self._constant[scaling.bias] = 0.0
        axes: dict[str, list[int]] = {}
        for name, axis in stream.axes:
            if name not in stream.heads:
                axes.setdefault(name, []).append(axis)
        self._axes = axes

    def proved(self) -> Stream | None:
        """Return the stream as it may be turned: by any orthogonal matrix, or by those that keep ones; else None."""
        with quiet_forward(self._teacher):
            before = self._outputs(None)
            for centred in (False, True):
                turn = random_turn(self._stream.leaf.size, centred).to(next(iter(self._trace.weights.values())).device)
                if self._keeps(before, turn):
                    return replace(self._stream, centred=centred)
        return None

    def _keeps(self, before: Sequence[Tensor], turn: Tensor) -> bool:
        """Return whether a turn of the whole stream leaves the outputs as they are, but for turning its own."""
        return all(
            bool(((new - old).abs() <= TOLERANCE * old.abs().max()).all())  # false where one is NaN
            for old, new in zip(before, self._outputs(turn), strict=True)
            if old.is_floating_point()
        )

    def _weight(self, name: str, turn: Tensor | None) -> Tensor:
        """Return a weight as the proof has it: at unit gain or constant, and turned."""
        weight = _full(self._trace.weights[name].detach())
        weight = torch.full_like(weight, self._constant[name]) if name in self._constant else _at_unit_gain(weight)
        for axis in self._axes.get(name, ()) if turn is not None else ():
            assert turn is not None
            weight = _along(weight, turn, axis)
        return weight

    def _outputs(self, turn: Tensor | None) -> list[Tensor]:
        """Return the outputs of all examples; those along the stream as they are when it is not turned."""
        found: list[Tensor] = []
        landmarks, inside = self._landmarks, self._stream.spaces
        for number, example in enumerate(self._trace.examples):
            forget(self._teacher)
            torch.manual_seed(0)  # a forward that draws numbers (ViLT chooses patches) draws the same each time
            inputs = {
                name: _full(given) if isinstance(given, Tensor) else given for name, given in example.inputs.items()
            }
            for name in example.streams:
                if turn is not None and landmarks.streams.get((number, name)) in inside:
                    inputs[name] = inputs[name].to(turn.dtype) @ turn.T
            rolled = example.rolled

            def weight(name: str, rolled: Mapping[str, int] = rolled) -> Tensor:
                made = self._weight(name, turn)
                return made.roll(rolled[name], 0) if name in rolled else made

            stand_ins = {name: _stand_in(tensor) for name, tensor in self._trace.weights.items()}
            with _MadeAtUse(stand_ins, weight, self._stream.heads, turn):
                outputs = output_tensors(call(self._teacher, example.part, inputs, stand_ins))
            found += [
                _turned_back(tensor, axes, inside, turn)
                for tensor, axes in zip(outputs, landmarks.outputs[len(found) :], strict=False)
            ]
        return found


def _stand_in(weight: Tensor) -> Tensor:
    """Return a tensor like a weight in float32 at least, but without its memory."""
    dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else weight.dtype
    return torch.zeros((), dtype=dtype, device=weight.device).expand(weight.shape)


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


def _at_unit_gain(weight: Tensor) -> Tensor:
    """Return a matrix scaled so that its outputs are about as large as its inputs.

    Of tiny values every smooth function is nearly linear, and what is not linear would pass. Whole numbers stay.
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        return weight
    gain = weight.square().mean().sqrt() * weight[0].numel() ** 0.5
    return weight / gain if gain > 0 else weight


class _MadeAtUse(TorchDispatchMode):
    """Makes weights where operations take what stands in for them, and turns rows that are looked up in some tables.

    Args:
        stand_ins: tensors like the weights, each with a storage of its own.
        weight: makes a weight by its name.
        tables: names of tables that stay as they are for everything but look-ups.
        turn: of the rows that are looked up in these; None if nothing is turned.
    """

    def __init__(
        self,
        stand_ins: Mapping[str, Tensor],
        weight: Callable[[str], Tensor],
        tables: Collection[str],
        turn: Tensor | None,
    ) -> None:
        super().__init__()
        self._names = {_storage(tensor): name for name, tensor in stand_ins.items()}
        self._weight, self._tables, self._turn = weight, tables, turn

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        table = self._name(args[0]) if args and func.overloadpacket is torch.ops.aten.embedding else None
        args, kwargs = tree_map(self._made, (args, dict(kwargs or {})))
        out = func(*args, **kwargs)
        return _along(out, self._turn, -1) if self._turn is not None and table in self._tables else out

    def _made(self, value: Any) -> Any:
        name = self._name(value)
        return value if name is None else self._weight(name)

    def _name(self, value: Any) -> str | None:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return None
        return self._names.get(_storage(value))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _along(tensor: Tensor, turn: Tensor, axis: int) -> Tensor:
    return torch.tensordot(tensor, turn.to(tensor.dtype), dims=([axis], [1])).movedim(-1, axis)


def _full(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least; integers are returned unchanged."""
    return full(tensor) if tensor.is_floating_point() else tensor
