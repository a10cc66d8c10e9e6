"""Which tensors of a forward lie in one vector space: if one of them is mapped by a matrix, so must be the others.

Finer than a coupled dimension: a multiplication by a vector begins another space, and so does the contraction of a
table with its input where the table's rows are also looked up. Takes the operations of a forward with the dimensions of
their tensors; gives numbers of spaces. Written by `trace`, read by `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.weak import WeakIdKeyDictionary

from .dims import Dim, find
from .landmarks import Sighting
from .weight_inputs import Contraction

aten = torch.ops.aten

Axis = tuple[str, int, bool]
"""A weight, one of its axes, and whether the axis is contracted with an input there (or makes outputs)."""


class Node:
    """A tensor's axis; joined nodes lie in one space."""

    __slots__ = ("link",)

    def __init__(self) -> None:
        self.link: Node | None = None

    def root(self) -> Node:
        """Return the node that stands for the space."""
        node = self
        while node.link is not None:
            node = node.link
        return node


class SpaceTracker:
    """Joins the axes of tensors into spaces while a forward is watched.

    Args:
        dims: gives the dimensions of a tensor.
        axes: gives for a tensor that is a weight (or holds all of one) the weight's name and which of its axes each
            axis of the tensor is; None for other tensors.
    """

    def __init__(
        self,
        dims: Callable[[Tensor], Sequence[Dim]],
        axes: Callable[[Tensor], tuple[str, Sequence[int]] | None],
    ) -> None:
        self._dims = dims
        self._axes = axes
        self._tensors = WeakIdKeyDictionary()
        self._weights: dict[Axis, Node] = {}
        self._numbers: dict[Node, int] = {}

    def note(
        self,
        operation: OpOverload,
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        product: Contraction | None,
        scaled: Sighting | None,
    ) -> tuple[Node, Node] | None:
        """Join the axes of `results` with those of `operands`; return the spaces before and after a scaling."""
        if product is not None and len(results) == 1:
            self._join_product(operation, product, results[0])
            return None
        cut = scaled if scaled is not None and scaled.key[0] == "scaled" else None
        before, after = Node(), Node()
        for result in results:
            nodes = [Node() for _ in result.shape]
            if cut is not None and result is cut.tensor:
                nodes[cut.axis] = after
            for operand in operands:
                self._join_operand(operand, result, nodes, (cut.axis, before) if cut is not None else None)
            self._tensors[result] = nodes
        return (before, after) if cut is not None else None

    def _join_operand(
        self, operand: Tensor, result: Tensor, nodes: Sequence[Node], cut: tuple[int, Node] | None
    ) -> None:
        """Join axes of an operand with those of the result; where a scaling cuts one, with the space before it."""
        for axis, at in self._matches(operand, result):
            is_vector = operand.numel() == operand.shape[axis]
            own = self._nodes(operand)[axis]
            _join(own, cut[1] if cut is not None and at == cut[0] and not is_vector else nodes[at])

    def of(self, tensor: Tensor) -> list[Node]:
        """Return the space of each axis of a tensor."""
        return self._nodes(tensor)

    def number(self, node: Node) -> int:
        """Return the number of a space; call it when all forwards are over."""
        return self._numbers.setdefault(node.root(), len(self._numbers))

    def weights(self) -> dict[Axis, int]:
        """Return the number of the space of each axis of each weight that some forward used."""
        return {axis: self.number(node) for axis, node in self._weights.items()}

    def _matches(self, operand: Tensor, result: Tensor) -> list[tuple[int, int]]:
        """Return pairs of axes of `operand` and `result` that are one dimension; aligned from the right if possible."""
        theirs = [find(dim) for dim in self._dims(result)]
        pairs = []
        for axis, dim in enumerate(map(find, self._dims(operand))):
            at = axis + result.ndim - operand.ndim
            if dim.size > 1:
                if not (0 <= at < len(theirs) and theirs[at] is dim):
                    at = next((other for other, its in enumerate(theirs) if its is dim), -1)
                if at >= 0:
                    pairs.append((axis, at))
        return pairs

    def _join_product(self, operation: OpOverload, product: Contraction, result: Tensor) -> None:
        """Join what meets in a product, and each axis of the result with the axis of the operand that it comes from."""
        (a, one), (b, other) = product.operands
        self._tensors[result] = nodes = [Node() for _ in result.shape]
        _join(self._nodes(a, one)[one], self._nodes(b, other)[other])
        if operation.overloadpacket is aten.convolution:
            outputs, places = 1, [(b, 0, 1), *((a, axis, axis) for axis in range(a.ndim) if axis != one)]
        else:
            outputs = result.ndim - 1
            places = [(b, b.ndim - 1, outputs), *((a, axis, axis) for axis in range(outputs))]
        for tensor, axis, at in places:
            if tensor.shape[axis] == result.shape[at]:
                _join(self._nodes(tensor)[axis], nodes[at])
        if product.bias is not None:
            _join(self._nodes(product.bias)[-1], nodes[outputs])

    def _nodes(self, tensor: Tensor, contracted: int | None = None) -> list[Node]:
        """Return the space of each axis of a tensor; of a weight, `contracted` is the axis that meets an input."""
        owned = self._axes(tensor)
        if owned is None:
            if tensor not in self._tensors:
                self._tensors[tensor] = [Node() for _ in tensor.shape]
            return self._tensors[tensor]
        name, axes = owned
        return [self._weights.setdefault((name, axis, at == contracted), Node()) for at, axis in enumerate(axes)]


def _join(a: Node, b: Node) -> None:
    one, other = a.root(), b.root()
    if one is not other:
        one.link = other
