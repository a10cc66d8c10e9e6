"""One weight of the student as a function of the teacher's, `W_student = R @ W_teacher @ C`, and where it is used.

Takes maps of axes and the teacher's tensor, gives the student's. `install` puts one on every weight that shrinks;
`FoldCache` decides how long the result is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .compactor import Compactor, IndexSelect
from .fold import fold


class KeptFold(ABC):
    """What fills the slot of a `FoldedWeight` while a `FoldCache` keeps its folds."""

    @abstractmethod
    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        """Return the student's weight `(k_out, k_in)` of the teacher's `original (d_out, d_in)`."""

    def __deepcopy__(self, memo: Any) -> None:
        """Leave the slot of a copied weight empty: a fold belongs to the maps that it was made with."""
        return None


class FoldedWeight(nn.Module):
    """One weight of the student computed from the teacher's: a map for each axis that shrinks.

    Args:
        maps: for each shrinking axis its `Compactor` or `IndexSelect`; modules may be shared between weights.
        shift: a learned vector `(k,)` that is added in the end: in a bias, it replaces the mean contribution of the
            dropped inputs of the weight beside it.

    Attributes:
        slot: gives the kept fold; None if each use folds. Only a `FoldCache` fills it.
        dtype: of the student's weight, if the teacher's tensor is held in another one; None for the tensor's own.
    """

    def __init__(self, maps: Mapping[int, Compactor | IndexSelect], shift: Tensor | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({str(axis): module for axis, module in maps.items()})
        self.shift = nn.Parameter(shift) if shift is not None else None
        self.slot: KeptFold | None = None
        self.dtype: torch.dtype | None = None

    def forward(self, original: Tensor) -> Tensor:
        """Return the student's weight `(k_out, k_in)`: the kept fold, or a new one."""
        return self.slot.of(self, original) if self.slot is not None else self.fold_like_a_parameter(original)

    def fold_like_a_parameter(self, original: Tensor) -> Tensor:
        """Fold; the result requires a gradient where a parameter would, even while gradients are off.

        Torch chooses kernels by `requires_grad`, so rounding is then the same as in the merged model.
        """
        folded = self.fold(original)
        if asks_for_gradients_later():
            folded.requires_grad_(original.requires_grad)
        return folded

    def fold(self, original: Tensor) -> Tensor:
        """Fold `(d_out, d_in) -> (k_out, k_in)`: never in less than float32, returned in `dtype` or the teacher's."""
        with torch.autocast(original.device.type, enabled=False):
            folded = self.mapped(original)
            if self.shift is not None:
                folded = folded + self.shift
            return folded.to(self.dtype or original.dtype).contiguous()  # like a loaded weight

    def mapped(self, original: Tensor) -> Tensor:
        """Return `original` with every axis mapped, without the shift, in the precision of the maps."""
        mapped = original
        for axis, module in self.maps.items():
            if isinstance(module, IndexSelect):
                mapped = module(mapped, int(axis))
        matrices = {int(axis): module.matrix for axis, module in self.maps.items() if isinstance(module, Compactor)}
        return fold(mapped, matrices) if matrices else mapped

    @torch.no_grad()
    def set_vector(self, original: Tensor, value: Tensor) -> None:
        """Set the shift so that a vector of the student is `value (k,)`."""
        assert self.shift is not None
        self.shift.copy_(value.to(self.shift).view(self.shift.shape) - self.mapped(original).to(self.shift))


def asks_for_gradients_later() -> bool:
    """Return whether a fold made now must be told to require gradients as a parameter does."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_inference_mode_enabled())


@dataclass(frozen=True)
class Place:
    """One use of a `FoldedWeight`: `weight` makes `attribute` of `module` from the teacher's `original`.

    Attributes:
        path: of the module in the student.
        attribute: of the module.
        module: that uses the weight.
        weight: the same in all places of a tied weight.
        original: the teacher's tensor.
    """

    path: str
    attribute: str
    module: nn.Module
    weight: FoldedWeight
    original: Tensor

    @property
    def spot(self) -> tuple[str, str]:
        """`path` and `attribute`, the same in a copy of this student."""
        return self.path, self.attribute


def places(student: nn.Module) -> Iterator[Place]:
    """Yield every use of a `FoldedWeight` in `student`; a tied weight has several."""
    for path, module in student.named_modules():
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            for attribute, steps in lists.items():
                # A stock model may have other parametrizations, such as weight norm.
                if isinstance(steps[0], FoldedWeight):
                    yield Place(path, attribute, module, steps[0], steps.original)


def folded_weights(student: nn.Module) -> dict[str, FoldedWeight]:
    """Return every `FoldedWeight` under each name of the weight that it makes."""
    return {".".join(filter(None, place.spot)): place.weight for place in places(student)}
