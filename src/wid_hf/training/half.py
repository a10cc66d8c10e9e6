"""Evaluation in half precision (`bf16_full_eval`, `fp16_full_eval`) that does not change the model.

`Trainer` casts the model in place and does not cast it back; compactors, and the teacher that they fold, would lose
precision that training needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainingArguments


def full_eval_dtype(args: TrainingArguments) -> torch.dtype | None:
    """Return the dtype that `Trainer` casts the whole model to for an evaluation outside of training, or None."""
    return torch.float16 if args.fp16_full_eval else torch.bfloat16 if args.bf16_full_eval else None


@contextmanager
def restored_values(model: nn.Module) -> Iterator[None]:
    """Undo casts of parameters and buffers of `model` that happen inside; nothing is copied."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
