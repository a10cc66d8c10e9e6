"""One weight of the student as a function of the teacher's, `W_student = R @ W_teacher @ C`, and where it stands.

Takes maps of axes and the teacher's tensor, gives the student's. `install` puts one on every weight that shrinks;
`FoldCache` decides how long what it gives is kept.
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
    """What stands for the folds of one weight as long as a `FoldCache` keeps them."""

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
        shift: a learned vector `(k,)` that is added in the end: what a bias takes over from the dropped indices
            that the weight beside it reads.

    Attributes:
        kept: what stands for the fold; None where each use folds. Only a `FoldCache` sets it.
    """

    def __init__(self, maps: Mapping[int, Compactor | IndexSelect], shift: Tensor | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({str(axis): module for axis, module in maps.items()})
        self.shift = nn.Parameter(shift) if shift is not None else None
        self.kept: KeptFold | None = None

    def forward(self, original: Tensor) -> Tensor:
        """Return the student's weight `(k_out, k_in)`: what is kept for it, else a new fold."""
        return self.kept.of(self, original) if self.kept is not None else self.fold_like_a_parameter(original)

    def fold_like_a_parameter(self, original: Tensor) -> Tensor:
        """Fold, and let the result require a gradient where a parameter would, also where none is recorded.

        Torch chooses how to compute a product by this, so rounding is then the same as in the merged model.
        """
        folded = self.fold(original)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            folded.requires_grad_(original.requires_grad)
        return folded

    def fold(self, original: Tensor) -> Tensor:
        """Fold `(d_out, d_in) -> (k_out, k_in)`: never in less than float32, returned in the teacher's dtype."""
        with torch.autocast(original.device.type, enabled=False):
            folded = original
            for axis, module in self.maps.items():
                if isinstance(module, IndexSelect):
                    folded = module(folded, int(axis))
            matrices = {int(axis): module.matrix for axis, module in self.maps.items() if isinstance(module, Compactor)}
            if matrices:
                folded = fold(folded, matrices)
            if self.shift is not None:
                folded = folded + self.shift
            return folded.to(original.dtype).contiguous()  # as a loaded weight is


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
        """Where it is, in this student and in a copy of it: `path` and `attribute`."""
        return self.path, self.attribute


def places(student: nn.Module) -> Iterator[Place]:
    """Yield every use of a `FoldedWeight` in `student`; a tied weight has several."""
    for path, module in student.named_modules():
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            for attribute, steps in lists.items():
                if isinstance(steps[0], FoldedWeight):  # a stock model's own may be weight norm
                    yield Place(path, attribute, module, steps[0], steps.original)


def folded_weights(student: nn.Module) -> dict[str, FoldedWeight]:
    """Return every `FoldedWeight` under each name of the weight that it makes."""
    return {".".join(filter(None, place.spot)): place.weight for place in places(student)}
