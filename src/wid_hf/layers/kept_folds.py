"""What fills the slot of a folded weight: its fold, or how it is made at its first use.

`FoldCache` puts these into the slots of a student and takes them out again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fold_groups import FoldGroup
from .folded_weight import FoldedWeight, KeptFold


class Formed(KeptFold):
    """A fold that every use shares, for longer than a forward."""

    def __init__(self, fold: Tensor) -> None:
        self.fold = fold

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        """Return the fold."""
        return self.fold


class TogetherAtFirstUse(KeptFold):
    """Folds of a group that are formed at the first use of one of them: with gradients and without."""

    def __init__(self, group: FoldGroup) -> None:
        self.group = group
        self.folds: dict[bool, dict[FoldedWeight, Tensor]] = {}  # by whether gradients are recorded

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        """Return the fold of one of the group."""
        if _inside_checkpoint():  # which computes this part again later, when this fold is dropped
            return weight.fold_like_a_parameter(original)
        recording = torch.is_grad_enabled()
        if recording not in self.folds:
            self.folds[recording] = self.group.fold_like_parameters() or {}
        folds = self.folds[recording]
        if weight not in folds:  # it cannot be folded with the others now
            folds[weight] = weight.fold_like_a_parameter(original)
        return folds[weight]


class AtFirstUse(KeptFold):
    """Folds that are formed at first use: one with gradients and one without."""

    def __init__(self) -> None:
        self.folds: dict[bool, Tensor] = {}  # by whether gradients are recorded

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        """Return the fold, formed now if this is the first use."""
        if _inside_checkpoint():  # which computes this part again later, when this fold is dropped
            return weight.fold_like_a_parameter(original)
        recording = torch.is_grad_enabled()
        if recording not in self.folds:
            self.folds[recording] = weight.fold_like_a_parameter(original)
        return self.folds[recording]


def _inside_checkpoint() -> bool:
    """Return whether saved tensors are being intercepted, as `torch.utils.checkpoint` does."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
