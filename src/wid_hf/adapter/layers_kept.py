"""The layers that a shallower student keeps: chosen on data, and as a config states them. Called by the tuner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.batches import Batch
from ..calibration.layer_choice import Kept, Layers, choose_layers
from ..calibration.precision import Precision
from ..calibration.report import Dropped
from ..config import WidConfig
from ..planning.depth import Stack, fits
from ..planning.student_plan import small_forward

KEPT_LAYERS = "base_model.kept_layers"  # the key in a saved adapter


def chosen_stacks(
    teacher: PreTrainedModel, stacks: Sequence[Stack], batches: Sequence[Batch], config: WidConfig
) -> tuple[tuple[Stack, ...], tuple[Dropped, ...]]:
    """Return the stacks with the layers that stay, and what was dropped, one layer after the other.

    Args:
        teacher: the model with all layers.
        stacks: those whose layers are not given are chosen.
        batches: keyword dictionaries for the teacher's forward.
        config: has the example inputs, and how layers are chosen.

    Raises:
        DataError: the forward raised on a batch.
        PlanError: no choice of layers makes a model.
    """
    open_ = [stack for stack in stacks if stack.is_choice]

    def complete(kept: Sequence[Kept]) -> tuple[Stack, ...]:
        found = dict(zip([stack.entry for stack in open_], kept, strict=True))
        return tuple(
            replace(stack, kept=found[stack.entry], new=len(found[stack.entry])) if stack.entry in found else stack
            for stack in stacks
        )

    layers = [
        Layers(tuple(tuple(f"{name}.{at}" for name in stack.lists) for at in range(stack.old)), stack.new)
        for stack in open_
    ]
    example = small_forward(teacher, config)
    kept, dropped = choose_layers(
        teacher,
        layers,
        batches,
        Precision.of_caller(teacher.device),
        by=config.calibration_config.layer_choice,
        fits=lambda each: fits(teacher, complete(each), example),
    )
    return complete(kept), tuple(dropped)


def named_layers(stacks: Sequence[Stack]) -> dict[str, list[int]]:
    """Return the layers that stay as `WidConfig.layers` states them."""
    return {stack.title: list(stack.kept) for stack in stacks if stack.kept is not None and stack.lists}


def layer_numbers(stacks: Sequence[Stack]) -> Tensor:
    """Return the layers that stay as a saved adapter holds them: of one stack after the other, int64."""
    return torch.tensor([layer for stack in stacks for layer in stack.kept or ()], dtype=torch.long)


def with_numbers(stacks: tuple[Stack, ...], numbers: Sequence[int]) -> tuple[Stack, ...]:
    """Return the stacks with the layers of `layer_numbers`; those that are given stay, and all if the count differs."""
    if len(numbers) != sum(len(stack.kept or ()) for stack in stacks):
        return stacks
    left = iter(numbers)
    read = [(stack, tuple(next(left) for _ in stack.kept or ())) for stack in stacks]
    return tuple(replace(stack, kept=kept) if stack.is_choice else stack for stack, kept in read)
