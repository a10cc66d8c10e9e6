"""Where the forwards of teacher and student can be compared and corrected: facts about operations only.

Takes the operations of one forward, one after the other; says which of them are landmarks. `trace` records the
teacher's, `calibration.forward_thread` stops at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.weak import WeakIdKeyDictionary

from .weight_inputs import WHOLE, Contraction, contraction, number_of

aten = torch.ops.aten

Kind = Literal["input", "scaled", "sum"]
Key = tuple[Kind, str, int]
"""Kind, name of a weight, and how many landmarks of this kind and name came before in the forward."""

_SAME_LAST_AXIS = WHOLE | {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.dropout}
_SUMS = frozenset({aten.add, aten.add_})
_NORMS = frozenset(getattr(aten, name) for name in ("native_layer_norm", "_fused_rms_norm") if hasattr(aten, name))
_PRODUCTS = frozenset({aten.mul, aten.mul_})


@dataclass(frozen=True)
class Vector:
    """A weight with one axis, or a sum of it and a number.

    Attributes:
        name: of the weight.
        offset: what is added to it: 1 for norms that multiply by `1 + weight`.
    """

    name: str
    offset: float = 0.0


@dataclass(frozen=True)
class Term:
    """An output of a weight that is added to something: the key of the weight's input, and a factor."""

    input: Key
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Sighting:
    """A landmark in a forward that runs.

    Attributes:
        key: identifies it in every forward of the model.
        tensor: the operand before the operation of an input; the result of a scaling or a sum.
        axis: of the tensor: contracted with the weight, scaled, or the outputs that were added.
        product: of an input.
        weight: which operand of the product is the weight, with its axis.
        vector: of a scaling.
        bias: name of the vector that the scaling's operation adds as well.
        terms: of a sum.
    """

    key: Key
    tensor: Tensor
    axis: int
    product: Contraction | None = None
    weight: tuple[Tensor, int] | None = None
    vector: Vector | None = None
    bias: str | None = None
    terms: tuple[Term, ...] = ()


class LandmarkFinder:
    """Recognises the landmarks of one forward.

    Args:
        names: which tensors are weights, by name; others may add to it while the forward runs.
    """

    def __init__(self, names: MutableMapping[Tensor, str]) -> None:
        self._names = names
        self._vectors = WeakIdKeyDictionary()
        self._outputs = WeakIdKeyDictionary()  # tensors that are outputs of weights, added to nothing yet
        self._used: set[Key] = set()  # inputs of weights whose outputs went into more than sums
        self._times: Counter[tuple[Kind, str]] = Counter()
        self._input: Sighting | None = None

    def before(self, operation: OpOverload, args: Sequence[Any]) -> Sighting | None:
        """Return the input of a weight that `operation` is about to contract, or None."""
        self._input = None
        if (product := contraction(operation, args)) is None:
            return None
        self._use(args)
        for (tensor, axis), (weight, place) in (product.operands, product.operands[::-1]):
            if (name := self._names.get(weight)) is not None and tensor not in self._names:
                key = self._key("input", name)
                self._input = Sighting(key, tensor, axis, product=product, weight=(weight, place))
                return self._input
        return None

    def after(self, operation: OpOverload, args: Sequence[Any], out: Any) -> Sighting | None:
        """Return the scaling or the sum that `operation` has computed, or None."""
        if self._input is not None:
            if isinstance(out, Tensor) and operation.overloadpacket is not aten.convolution:
                self._outputs[out] = (Term(self._input.key),)
            self._input = None  # a finder that is kept holds no tensor
            return None
        packet = operation.overloadpacket
        if packet in _NORMS:
            self._use(args)
            return self._normed(args, out[0], args[3] if packet is aten.native_layer_norm else None)
        if not isinstance(out, Tensor) or not args or not isinstance(args[0], Tensor):
            return None
        if packet in _PRODUCTS:
            return self._product(args[0], args[1], out)
        if packet in _SUMS:
            return self._sum(args[0], args[1], out)
        if packet in _SAME_LAST_AXIS:
            self._pass_on(args[0], out)
        else:
            self._use(args)
        return None

    def vector(self, tensor: Any) -> Vector | None:
        """Return which vector `tensor` is, or None."""
        if not isinstance(tensor, Tensor):
            return None
        name = self._names.get(tensor)
        if name is not None and sum(size > 1 for size in tensor.shape) == 1:
            return Vector(name)
        return self._vectors.get(tensor)

    def _normed(self, args: Sequence[Any], out: Tensor, bias: Tensor | None) -> Sighting | None:
        vector = self.vector(args[2])
        if vector is None or len(args[1]) != 1:
            return None
        name = self._names.get(bias) if bias is not None else None
        return Sighting(self._key("scaled", vector.name), out, out.ndim - 1, vector=vector, bias=name)

    def _product(self, a: Tensor, b: Any, out: Tensor) -> Sighting | None:
        if (number := number_of(b)) is not None and (terms := self._outputs.get(a)):
            self._outputs[out] = tuple(replace(term, factor=term.factor * number) for term in terms)
            return None
        self._use((a, b))
        vectors = self.vector(a), self.vector(b)
        for vector, tensor, other in zip(vectors, (a, b), (b, a), strict=True):
            if vector is not None and isinstance(other, Tensor) and not self._is_of_weights(other):
                axis = out.ndim - tensor.ndim + next(at for at, size in enumerate(tensor.shape) if size > 1)
                if other.ndim == out.ndim and other.shape[axis] == out.shape[axis]:
                    return Sighting(self._key("scaled", vector.name), out, axis, vector=vector)
        return None

    def _sum(self, a: Tensor, b: Any, out: Tensor) -> Sighting | None:
        if (number := number_of(b)) is not None:
            if (vector := self.vector(a)) is not None:
                self._vectors[out] = replace(vector, offset=vector.offset + number)
            return None
        mine, others = self._branch(a), self._branch(b)
        terms = mine + others
        if not terms:
            return None
        if (mine and others) or self.vector(b) is not None or self.vector(a) is not None:
            self._outputs[out] = terms
            return None
        _, name, use = terms[0].input
        return Sighting(("sum", name, use), out, out.ndim - 1, terms=terms)

    def _branch(self, tensor: Tensor) -> tuple[Term, ...]:
        """Return the outputs of weights that `tensor` consists of; none if they went elsewhere before: a residual."""
        terms: tuple[Term, ...] = self._outputs.get(tensor, ())
        return () if any(term.input in self._used for term in terms) else terms

    def _use(self, operands: Sequence[Any]) -> None:
        for tensor in operands:
            if isinstance(tensor, Tensor):
                self._used |= {term.input for term in self._outputs.get(tensor, ())}

    def _pass_on(self, tensor: Tensor, out: Tensor) -> None:
        if (vector := self._vectors.get(tensor)) is not None:
            self._vectors[out] = vector
        if (terms := self._outputs.get(tensor)) and out.shape[-1:] == tensor.shape[-1:]:
            self._outputs[out] = terms

    def _is_of_weights(self, tensor: Tensor) -> bool:
        return tensor in self._names or tensor in self._vectors

    def _key(self, kind: Kind, name: str) -> Key:
        use = self._times[kind, name]
        self._times[kind, name] += 1
        return kind, name, use
