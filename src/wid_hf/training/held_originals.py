"""The dtype in which a training holds the teacher's frozen matrices: half precision takes half the memory.

Takes a wid model whose start is made; casts, in place, the originals that its student is folded from. Called by
`WidCallback` before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainingArguments

from ..errors import ConfigError, TrainingError
from ..layers import is_parted
from ..layers.folded_weight import Place, places

AUTO = "auto"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def hold_originals(model: Any, args: TrainingArguments) -> None:
    """Cast the teacher's matrices of which the student is folded to `args.teacher_dtype`, in place.

    The student's weights keep the dtype that they had, and folds are computed as precisely as before. Vectors, and
    matrices that the student has as they are, stay.

    Args:
        model: a wid model, calibrated.
        args: training arguments; without `teacher_dtype` nothing is done.

    Raises:
        TrainingError: some of these weights train, are divided among processes, or are still to be dropped by a
            schedule.
    """
    wanted = getattr(args, "teacher_dtype", AUTO)
    if wanted == AUTO:
        return
    matrices = [place for place in places(model.base_model.model) if place.original.ndim > 1]
    _refuse_unfit(model, matrices, wanted)
    dtype = DTYPES[wanted]
    for place in matrices:
        original = place.original
        if original.is_floating_point() and original.element_size() > dtype.itemsize:
            place.weight.dtype = original.dtype
            original.data = original.data.to(dtype)  # of the teacher and the student: they share this parameter


def _refuse_unfit(model: Any, matrices: Sequence[Place], wanted: str) -> None:
    """Refuse a model whose matrices cannot be cast."""
    if model.base_model.controller is not None:
        raise TrainingError(
            f"teacher_dtype={wanted!r} does not work with a progressive schedule, whose steps read the teacher's "
            'weights: leave it out, or make the model with schedule="narrow".'
        )
    if trains := [place for place in matrices if place.original.requires_grad]:
        raise TrainingError(
            f"teacher_dtype={wanted!r} is for weights of the teacher that are frozen, and {len(trains)} train, the "
            f"first is {'.'.join(trains[0].spot)}. Set teacher_learning_rate=0, or leave teacher_dtype out."
        )
    if is_parted(model):
        raise TrainingError(
            f"teacher_dtype={wanted!r} does not work with weights that are divided among processes (FSDP, DeepSpeed): "
            "leave it out."
        )


def refuse_unknown_dtype(wanted: str) -> None:
    """Refuse a dtype in which the teacher's weights cannot be held.

    Raises:
        ConfigError: the message has those that are legal.
    """
    if wanted != AUTO and wanted not in DTYPES:
        raise ConfigError(f"teacher_dtype={wanted!r} is unknown. Legal: {', '.join(map(repr, (AUTO, *DTYPES)))}.")


def refuse_teacher_in_other_dtype(args: TrainingArguments | None) -> None:
    """Refuse losses that run a teacher of whose matrices the dtype is not that of autocast.

    Raises:
        ConfigError: the message says what to set.
    """
    wanted = getattr(args, "teacher_dtype", AUTO)
    mixed = {"bfloat16": "bf16", "float16": "fp16"}.get(wanted)
    if mixed is not None and not getattr(args, mixed):
        raise ConfigError(
            f"teacher_dtype={wanted!r} with losses from the teacher needs {mixed}=True: the teacher runs in each step, "
            f"and its matrices are in {wanted} then. Set {mixed}=True, or leave teacher_dtype out."
        )
