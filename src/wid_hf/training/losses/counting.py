"""What counts in a batch: positions and rows with labels, attended positions, and means over them.

Pure functions of a batch. Called by all losses between a student and its teacher, and by `accumulation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...calibration.padding import MASKS
from ..labelled_positions import NO_LABEL, shifts_labels


def counted_positions(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return which positions `(b, s)`, or rows `(b,)`, have labels; attended ones if there are no labels, of a decoder
    that reads along a target those of the target.

    None if the batch has neither: then all count.
    """
    labels, mask = inputs.get("labels"), inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    if not isinstance(labels, Tensor):
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if labels.is_floating_point():  # a regression's targets, of which none means "no label"
        return torch.ones_like(labels, dtype=torch.bool)
    counted = labels.ne(NO_LABEL)
    return functional.pad(counted[:, 1:], (0, 1)) if shifts_labels(model) and counted.ndim > 1 else counted


def shares(counted: Tensor | None, inputs: Mapping[str, Any]) -> Tensor:
    """Return each row's share `(b,)` of what counts in a batch."""
    rows = rows_of(inputs)
    weights = torch.ones(rows) if counted is None else counted.reshape(rows, -1).sum(1)
    return weights / weights.sum().clamp(min=1)


def mean_of(losses: Tensor) -> Tensor:
    """Return the mean of `losses (n,)`; 0 if there are none."""
    return losses.sum() / max(len(losses), 1)


def full(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Return how many examples a batch has."""
    return len(next(value for value in inputs.values() if isinstance(value, Tensor) and value.ndim))


def attended_positions(model: nn.Module, state: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return which positions of `state (b, s, n)` are not padding.

    A model of sounds makes fewer positions than its mask has: rows have those that its own method counts. Without such
    a method, or where only a part of the model has run, they have their share, rounded up.

    Args:
        model: whose state it is.
        state: of all rows.
        inputs: of the model's forward, with masks of encoder or decoder; without one that fits all positions count.
    """
    masks = {name: inputs[name] for name in MASKS if isinstance(inputs.get(name), Tensor)}
    fitting = next((mask for mask in masks.values() if mask.shape == state.shape[:2]), None)
    if fitting is not None:
        return fitting.bool()
    mask, positions = masks.get(MASKS[0]), state.shape[1]
    of_texts = "input_ids" in inputs  # another number of positions is that of a decoder
    if of_texts or mask is None or mask.ndim != 2 or len(mask) != len(state) or mask.int().diff(dim=1).gt(0).any():
        return torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)
    made = getattr(model, "_get_feat_extract_output_lengths", lambda length: length)
    lengths = -(-made(mask.sum(1)) * positions // made(torch.tensor(mask.shape[1], device=mask.device)))
    return torch.arange(positions, device=mask.device) < lengths.unsqueeze(1)
