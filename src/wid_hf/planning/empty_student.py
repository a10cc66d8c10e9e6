"""A model with weights of zero that take no memory yet, to be filled by its maker.

Takes a teacher and a config; gives a model of the teacher's class, on its device, in its dtypes.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..coupling.trace import saved_tensors


def empty_student(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Return `type(teacher)(config)` with weights of zero, on the teacher's device, in its dtypes and mode."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        student = type(teacher)(deepcopy(config))
    student.tie_weights()  # skipped together with the initialisation
    own = dict(teacher.named_parameters(remove_duplicate=False)) | dict(teacher.named_buffers())
    for name, buffer in student.named_buffers():
        if name in own and own[name].is_floating_point():
            buffer.data = buffer.data.to(own[name].dtype)
    saved = saved_tensors(student)
    for name, parameter in student.named_parameters():
        if name in saved:
            parameter.data = _zeros(parameter.shape, own[name].dtype if name in own else parameter.dtype)
        elif parameter.shape == own[name].shape:  # computed from the config, with the same sizes as the teacher's
            parameter.data = own[name].data.to(parameter.device)
        else:
            _compute_again(student, name)
            parameter.data = parameter.data.to(own[name].dtype)
    if teacher.can_generate():
        student.generation_config = deepcopy(teacher.generation_config)
    return student.to(teacher.device).train(teacher.training)


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return zeros that take no memory until something is written: numpy lets the operating system clear them."""
    if not shape.numel():
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(np.zeros(shape.numel() * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _compute_again(student: PreTrainedModel, name: str) -> None:
    """Let the model compute a parameter that no checkpoint holds, as on loading (Marian's positions)."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        student._init_weights(student.get_submodule(name.rpartition(".")[0]))
