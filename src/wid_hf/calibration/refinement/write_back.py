"""How a student's weight takes another value while it remains a function of the teacher's.

`W_student = R @ W_teacher @ C`: a change of a matrix is taken over by one of its maps, a change of a vector by its
shift or its factors. Takes a `FoldedWeight`, gives what changes it. Called by `plain_weights`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...arithmetic import in_float64
from ...layers.compactor import Compactor, IndexSelect
from ...layers.fold import along
from ...layers.folded_weight import FoldedWeight, Place

SMALLEST = 1e-5  # singular values below this share of the largest count as zero


class WriteBack(ABC):
    """What takes over the change of one weight.

    Attributes:
        weight: the folded weight.
        original: the teacher's tensor.
    """

    def __init__(self, weight: FoldedWeight, original: Tensor) -> None:
        self.weight, self.original = weight, original.detach()
        self.start = self.folded()

    def folded(self) -> Tensor:
        """Return the student's weight as its maps make it now, in float32 or more."""
        full = self.original.to(torch.promote_types(self.original.dtype, torch.float32))
        return self.weight.fold(full).detach()

    def project_(self, value: Tensor) -> None:
        """Bring `value`, in place, to the nearest one that can be written."""
        return None

    @abstractmethod
    def write(self, value: Tensor) -> None:
        """Change the maps, so that they make `value`."""


class ByShift(WriteBack):
    """The shift takes all."""

    def write(self, value: Tensor) -> None:
        """Change the shift."""
        assert self.weight.shift is not None
        self.weight.shift.add_(value.to(self.weight.shift) - self.folded().to(self.weight.shift))


class ByFactors(WriteBack):
    """A selection's factors take all: no selected entry of the teacher is zero."""

    def write(self, value: Tensor) -> None:
        """Change the factors."""
        selection = self.weight.maps["0"]
        assert isinstance(selection, IndexSelect)
        selection.factors.copy_(value.to(selection.factors) / self.original[selection.indices].to(selection.factors))


class ByMap(WriteBack):
    """A compactor takes what it can: all, where the weight with its other axes mapped has full rank.

    With `P (n, m)` the weight before the map `C (k, n)` of one axis, that axis first, a change `D (k, m)` of `C @ P` is
    `D @ P^+` in the map. It is exact if P has rank m; else the part of D in the row space of P is.

    Args:
        weight: the folded weight.
        original: the teacher's tensor.
        axis: of the map.
    """

    def __init__(self, weight: FoldedWeight, original: Tensor, axis: int) -> None:
        super().__init__(weight, original)
        self.axis = axis
        before = self._before_map()
        wide = before.shape[1] > before.shape[0]
        values, vectors = torch.linalg.eigh(before @ before.T if wide else before.T @ before)
        kept = values > SMALLEST**2 * values[-1]
        self._rank = int(kept.sum())
        rows = before.T @ vectors[:, kept] / values[kept].sqrt() if wide else vectors[:, kept]
        self._inverse = rows / values[kept] @ (rows.T @ before.T)  # P^+ (m, n)
        self._rows = rows if self._rank < before.shape[1] else None
        self.share = self._rank / before.shape[1]

    @property
    def compactor(self) -> Compactor:
        """The map that changes."""
        compactor = self.weight.maps[str(self.axis)]
        assert isinstance(compactor, Compactor)
        return compactor

    def project_(self, value: Tensor) -> None:
        """Leave out what is not in the row space."""
        if self._rows is not None:
            change = self._flat(value - self.start)
            rows = self._rows.to(change)
            value.copy_(self.start + self._unflat(change @ rows @ rows.T, value.shape))

    def write(self, value: Tensor) -> None:
        """Change the map."""
        matrix = self.compactor.matrix
        matrix.add_((self._flat(in_float64(value - self.start)) @ self._inverse).to(matrix))

    def _before_map(self) -> Tensor:
        """Return the weight without this map, `(n, m)` float64."""
        selected = self.original.to(torch.promote_types(self.original.dtype, torch.float32))
        for axis, module in self.weight.maps.items():
            if isinstance(module, IndexSelect):
                selected = module(selected, int(axis))
        folded = in_float64(selected)
        for axis, module in self.weight.maps.items():
            if isinstance(module, Compactor) and int(axis) != self.axis:
                folded = along(folded, in_float64(module.matrix), int(axis))
        return self._flat(folded)

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(self.axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]

    def _unflat(self, flat: Tensor, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return flat[:, 0]
        rest = [size for axis, size in enumerate(shape) if axis != self.axis]
        return flat.unflatten(1, rest).movedim(0, self.axis)


def write_backs(chosen: Mapping[str, Place], everything: Iterable[FoldedWeight]) -> dict[str, WriteBack]:
    """Return for each of the chosen weights what takes over its changes, if anything can; matrices before vectors.

    A map that several weights share changes only if all others have a shift, which makes good what they lose; these
    must be among the chosen.

    Args:
        chosen: one place of each weight, by name.
        everything: all folded weights of the student.
    """
    users = Counter(module for weight in everything for module in weight.maps.values())
    shifted = Counter(
        module for place in chosen.values() if place.weight.shift is not None for module in place.weight.maps.values()
    )
    order = sorted(chosen, key=lambda name: chosen[name].original.ndim, reverse=True)
    found = {name: _write_back(chosen[name], users, shifted) for name in order}
    return {name: each for name, each in found.items() if each is not None}


def _write_back(place: Place, users: Mapping[nn.Module, int], shifted: Mapping[nn.Module, int]) -> WriteBack | None:
    weight, original = place.weight, place.original
    if weight.shift is not None:
        return ByShift(weight, original)
    if original.ndim > 1:
        return _by_map(place, users, shifted)
    selection = weight.maps["0"]
    is_scaled = isinstance(selection, IndexSelect) and bool((original[selection.indices] != 0).all())
    return ByFactors(weight, original) if is_scaled else None


def _by_map(place: Place, users: Mapping[nn.Module, int], shifted: Mapping[nn.Module, int]) -> ByMap | None:
    """Return the first map that may change and can take every change of the matrix, or the one that can take most."""
    maps = {int(axis): module for axis, module in place.weight.maps.items() if isinstance(module, Compactor)}
    free = [axis for axis, module in maps.items() if users[module] - shifted[module] == 1]
    best: ByMap | None = None
    for axis in sorted(free, key=lambda axis: users[maps[axis]]):  # columns first: biases share the others
        found = ByMap(place.weight, place.original, axis)
        if best is None or found.share > best.share:
            best = found
        if best.share == 1:
            break
    return best
