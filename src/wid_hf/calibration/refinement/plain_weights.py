"""Weights of a student that train as plain tensors for a while, and are then written back into their maps.

Takes a student and names, gives leaf tensors that the student's own forward uses. Called by `layer_by_layer` and
`head`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...coupling.plan import Plan
from ...layers.fold_cache import FoldCache
from ...layers.folded_weight import FoldedWeight, KeptFold, Place, places
from .write_back import ByMap, write_backs

State = dict[str, Tensor]


class _Plain(KeptFold):
    """A leaf tensor in float32 or more, used in the teacher's dtype."""

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        return self.leaf.to(original.dtype)


class PlainWeights:
    """Folded weights of a student, as tensors that train.

    Args:
        student: an installed student.
        chosen: one place of each weight, by name.
        cache: holds the student's folds.

    Attributes:
        leaves: for each weight whose changes can be written back its value, which training changes in place.
    """

    def __init__(self, student: nn.Module, chosen: Mapping[str, Place], cache: FoldCache) -> None:
        everything = {place.weight for place in places(student)}
        self._cache = cache
        self._write_backs = write_backs(chosen, everything)
        self.leaves = {name: each.start.clone().requires_grad_() for name, each in self._write_backs.items()}

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves."""
        return list(self.leaves.values())

    def keep_only(self, names: Iterable[str]) -> None:
        """Train no others than these; vectors that make good for them stay."""
        names = set(names)
        matrices = {name: each for name, each in self._write_backs.items() if isinstance(each, ByMap)}
        # A shift may have to make good what a map took away, so that it stays even where it gets no gradient.
        self._write_backs = {
            name: each for name, each in self._write_backs.items() if name in names or name not in matrices
        }
        self.leaves = {name: leaf for name, leaf in self.leaves.items() if name in self._write_backs}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the student's forward use the leaves inside."""
        weights = {name: each.weight for name, each in self._write_backs.items()}
        try:
            for name, weight in weights.items():
                weight.slot = _Plain(self.leaves[name])
            yield
        finally:
            for weight in weights.values():
                self._cache.forget(weight)

    @torch.no_grad()
    def project_(self) -> None:
        """Bring every leaf to what can be written back."""
        for name, each in self._write_backs.items():
            each.project_(self.leaves[name])

    @torch.no_grad()
    def write(self) -> float:
        """Write all leaves into their maps; return the share of the squared change that was lost."""
        for name, each in self._write_backs.items():
            each.write(self.leaves[name].detach())
            self._cache.forget(each.weight)
        pairs = [(each, self.leaves[name]) for name, each in self._write_backs.items()]
        lost = sum(float((each.folded() - leaf).square().sum()) for each, leaf in pairs)
        whole = sum(float((leaf - each.start).square().sum()) for each, leaf in pairs)
        return lost / whole if whole else 0.0

    def state(self) -> State:
        """Return a copy of everything that `write` changes."""
        return {
            f"{name}.{entry}": tensor.detach().clone()
            for name, each in self._write_backs.items()
            for entry, tensor in each.weight.state_dict().items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set everything that `write` changes."""
        for name, each in self._write_backs.items():
            for entry, tensor in each.weight.state_dict().items():
                tensor.copy_(state[f"{name}.{entry}"])
            self._cache.forget(each.weight)


def chosen_in(student: nn.Module, plan: Plan, layer: str) -> dict[str, Place]:
    """Return a place of every folded weight that only this layer uses and that is not looked up."""
    inside = _weights_of(student, layer)
    outside = Counter(place.weight for place in places(student))
    outside.subtract(place.weight for place in places(student.get_submodule(layer)))
    return _named(plan, [place for place in places(student) if place.weight in inside and not outside[place.weight]])


def chosen_outside(student: nn.Module, plan: Plan, layers: Sequence[str]) -> dict[str, Place]:
    """Return a place of every folded weight that no layer uses and that is not looked up."""
    inside = {weight for layer in layers for weight in _weights_of(student, layer)}
    return _named(plan, [place for place in places(student) if place.weight not in inside])


def _weights_of(student: nn.Module, layer: str) -> set[FoldedWeight]:
    return {place.weight for place in places(student.get_submodule(layer))}


def _named(plan: Plan, found: Iterable[Place]) -> dict[str, Place]:
    """Return places by the first name of their weight, without tables."""
    named = {".".join(filter(None, place.spot)): place for place in found}
    return {name: place for name, place in named.items() if name in plan.axes and name not in plan.looked_up}
