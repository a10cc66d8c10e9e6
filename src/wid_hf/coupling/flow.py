"""Which weights the outputs of a forward were computed from.

Takes the operands and results of each operation; gives the weights that an example has reached. A weight whose
result was dropped is not reached. Knows nothing of dimensions or rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch._ops import OpOverload
from torch.utils.weak import WeakIdKeyDictionary

# Results that hold nothing of their operand but its shape, type and device.
_BLANKS = frozenset(
    {
        "aten.new_full",
        "aten.new_zeros",
        "aten.new_ones",
        "aten.new_empty",
        "aten.new_empty_strided",
        "aten.full_like",
        "aten.zeros_like",
        "aten.ones_like",
        "aten.empty_like",
        "aten.rand_like",
        "aten.randn_like",
        "aten.randint_like",
    }
)


@dataclass(frozen=True, eq=False)
class Value:
    """What a tensor held at one time.

    Attributes:
        sources: the values that it was computed from.
        weight: the weight's name, if it is one.
    """

    sources: tuple[Value, ...] = ()
    weight: str | None = None


class Flow:
    """The values of one forward.

    Args:
        weights: each weight's name with its tensor.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._values = WeakIdKeyDictionary()
        self._written = WeakIdKeyDictionary()  # by storage, since a write through one view shows in all others
        self._escaped: list[Value] = []
        self.touched: set[str] = set()  # names of weights that some operation took
        for name, weight in weights:
            self._values[weight] = Value(weight=name)

    def note(self, operation: OpOverload, operands: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Remember that `operation` computed `results` from `operands`."""
        if str(operation.overloadpacket) in _BLANKS:
            operands = []
        sources = tuple(dict.fromkeys(value for tensor in operands for value in self._of(tensor)))
        self.touched |= {source.weight for source in sources if source.weight is not None}
        if not results:  # a tensor became a Python number, and what the forward does with that is not seen
            self._escaped += sources
        for tensor in results:
            self._values[tensor] = value = Value(sources)
            if operation._schema.is_mutable:
                self._written[tensor.untyped_storage()] = value

    def reached(self, outputs: Iterable[Tensor]) -> set[str]:
        """Return the names of the weights from which `outputs` were computed, or numbers that steered the forward."""
        waiting = [*self._escaped, *(value for tensor in outputs for value in self._of(tensor))]
        seen, names = set(waiting), set()
        while waiting:
            value = waiting.pop()
            if value.weight is not None:
                names.add(value.weight)
            fresh = [source for source in value.sources if source not in seen]
            seen.update(fresh)
            waiting += fresh
        return names

    def _of(self, tensor: Tensor) -> list[Value]:
        if tensor not in self._values:
            self._values[tensor] = Value()
        values = [self._values[tensor]]
        if self._written and (last := self._written.get(tensor.untyped_storage())) is not None:
            values.append(last)
        return values
