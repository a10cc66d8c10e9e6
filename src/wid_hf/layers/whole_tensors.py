"""Tensors of which every process holds a part (FSDP2, DeepSpeed ZeRO-3), put together one at a time.

Takes a tensor or the parametrizations of one weight; gives the whole. Called wherever values are read outside a
forward: the merge, saved adapters, fingerprints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .folded_weight import FoldedWeight


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; itself where this process has all of it.

    Every process must call it with the same tensor, and at the same time.
    """
    part: Any = tensor
    if hasattr(part, "full_tensor"):  # a DTensor of torch, as FSDP2 makes them
        found: Tensor = part.detach().full_tensor()
        return found
    if hasattr(part, "ds_id"):  # a parameter that ZeRO-3 has parted
        from deepspeed import zero

        with zero.GatheredParameters([part]):
            return tensor.detach().clone()
    return tensor


def is_parted(model: nn.Module) -> bool:
    """Return whether this process holds only a part of any parameter of `model`."""
    return any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters())


@torch.no_grad()
def whole_weight(module: nn.Module, attribute: str) -> Tensor:
    """Return a weight of a student as training sees it, a copy: folded from whole tensors if it is folded."""
    lists: Any = getattr(module, "parametrizations", {})
    if attribute not in lists:
        return whole(getattr(module, attribute)).detach().clone()
    steps = lists[attribute]
    if not (isinstance(steps[0], FoldedWeight) and is_parted(steps)):
        made: Tensor = getattr(module, attribute)
        return made.detach().clone()
    maps = _Fold(steps[0])
    tensors = {name: whole(p) for name, p in maps.named_parameters(remove_duplicate=False)}
    folded: Tensor = functional_call(maps, tensors, (whole(steps.original),))
    return folded.clone()


class _Fold(nn.Module):
    """Folds without a call of the weight's own modules, whose hooks would ask for parts again."""

    def __init__(self, weight: FoldedWeight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, original: Tensor) -> Tensor:
        return self.weight.fold(original)
