"""Whether two models compute the same. Called where a teacher is planned with on other modules than its own."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..arithmetic import full_float32
from ..coupling import Example
from ..coupling.trace import call, output_tensors, quiet_forward
from .tracing import plain_attention


def is_same_function(first: PreTrainedModel, second: PreTrainedModel, example: Example) -> bool:
    """Return whether both give the same outputs for one example, up to rounding."""
    before, after = (example_outputs(model, example) for model in (first, second))
    return len(before) == len(after) and all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in zip(before, after, strict=True)
    )


def example_outputs(model: PreTrainedModel, example: Example) -> list[Tensor]:
    """Return all tensors that `model` gives for `example`, in evaluation mode, always in the same order."""
    with plain_attention(model), quiet_forward(model), full_float32():
        torch.manual_seed(0)  # some models draw masks in evaluation as well
        return output_tensors(call(model, example.part, example.inputs, {}))
