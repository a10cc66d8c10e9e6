"""Lets a teacher, and what was traced of it, follow its student to another device.

Takes both after the student has moved. The teacher's parameters are the student's and have moved with it, but PyTorch
makes new tensors of buffers when it moves a module, and the teacher is no part of the student's module tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..coupling import Example, Trace


def follow_student(student: nn.Module, teacher: nn.Module, others: Iterable[nn.Module], trace: Trace) -> None:
    """Bring all that the teacher does not share with `student` to its device.

    Buffers that a checkpoint holds become one tensor of student, teacher and trace again; computed tables and the
    traced examples are moved. Nothing changes where everything is on one device.

    Args:
        student: an installed student.
        teacher: whose weights it is folded from.
        others: models on the teacher's tensors, such as the one with all of its layers.
        trace: the teacher's.
    """
    device = next(student.parameters()).device
    for name, first in trace.aliases.items():
        if not isinstance(trace.weights[first], nn.Parameter) and trace.weights[first].device != device:
            trace.weights[first] = _original(student, name)
    for name, first in trace.aliases.items():
        if not isinstance(trace.weights[first], nn.Parameter):
            path, _, attribute = name.rpartition(".")
            if getattr(teacher.get_submodule(path), attribute).device != device:
                teacher.get_submodule(path)._buffers[attribute] = trace.weights[first]
    for model in (teacher, *others):
        _move_buffers(model, device)
    now = dict(chain(teacher.named_buffers(), teacher.named_parameters()))
    trace.computed = {name: now.get(name, tensor) for name, tensor in trace.computed.items()}
    trace.examples = [_moved(example, device) for example in trace.examples]


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)


def _original(student: nn.Module, name: str) -> Tensor:
    """Return the teacher's tensor from which the student's weight `name` is computed, or which it is."""
    path, _, attribute = name.rpartition(".")
    module: Any = student.get_submodule(path)
    if parametrize.is_parametrized(module, attribute):
        return module.parametrizations[attribute].original
    return getattr(module, attribute)


def _moved(example: Example, device: torch.device) -> Example:
    inputs: Mapping[str, Any] = example.inputs
    return replace(
        example,
        inputs={name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()},
    )
