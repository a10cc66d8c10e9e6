"""Stock models of a student's sizes with random weights, and inputs of a given size: what can be timed without a start.

Takes a teacher and a student's config. Called by `latency` and `memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..coupling.trace import quiet_forward
from ..errors import ConfigError
from ..planning.example_inputs import BATCH, LENGTH, Inputs, example_inputs
from ..planning.student_plan import empty_student

DEVIATION = 0.02


def stock_model(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of the student's sizes with random weights, on the teacher's device, in evaluation mode."""
    model = empty_student(teacher, config).eval()
    generator = torch.Generator(model.device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            # Weights that nobody has written are one page of zeros, which a cache holds: they would seem too fast.
            if weight.is_floating_point():
                weight.normal_(std=DEVIATION, generator=generator)
    return model


def sized_inputs(model: PreTrainedModel, batch: int, length: int) -> Inputs:
    """Return inputs of one forward with `batch` rows; those of tokens are `length` long.

    Raises:
        ConfigError: the model does not run on them, such as with more tokens than it has positions for.
    """
    given = {name: _sized(value, batch, length) for name, value in example_inputs(model).items()}
    try:
        forward(model, given)
    except (IndexError, LookupError, RuntimeError, ValueError) as cause:
        raise ConfigError(
            f"Target: {type(model).__name__} does not run on batch={batch}, length={length} ({cause}). Give a length "
            "that the teacher has positions for, or leave latency_ms and memory out."
        ) from cause
    return given


def forward(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Run `model` once as those who use it do."""
    with torch.no_grad(), quiet_forward(model):
        model(**inputs)


def _sized(value: Any, batch: int, length: int) -> Any:
    if not isinstance(value, Tensor) or not value.ndim or len(value) != BATCH:
        return value
    rows = value[torch.arange(batch, device=value.device) % BATCH]
    if value.ndim == 2 and value.shape[1] == LENGTH and not value.is_floating_point():
        return rows[:, torch.arange(length, device=value.device) % LENGTH]
    return rows
