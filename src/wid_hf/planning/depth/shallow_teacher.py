"""A shallower teacher on the same tensors, proved against the teacher whose other layers are passed by.

Takes a teacher and which layers stay; gives a model of its class with fewer layers. Called by `student_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ...calibration.bypass import bypassed
from ...coupling import Example
from ...coupling.trace import saved_tensors
from ...errors import PlanError
from ..empty_student import empty_student
from ..same_function import is_same_function
from ..skeleton import skeleton
from .shallow_config import WAYS, Way, shallow_config
from .stacks import Stack, source


def shallow_teacher(teacher: PreTrainedModel, stacks: Sequence[Stack], example: Example) -> PreTrainedModel:
    """Return a model with the layers that each stack keeps, on the tensors of `teacher`, which is not changed.

    Args:
        teacher: a model that passes `check_teacher`.
        stacks: of it, each with `kept`.
        example: a small forward.

    Raises:
        PlanError: layers that cannot stand where they would, or a model that computes something else than the teacher
            without the other layers.
    """
    refused: PlanError | None = None
    for way in WAYS:
        try:
            config = _config(teacher.config, stacks, way)
            made = _on_tensors(teacher, config, stacks)
            if not any(stack.lists for stack in stacks):  # one layer runs fewer times: nothing passes it by
                _refuse_no_change(teacher, made, stacks, example)
                return made
            with bypassed(teacher, dropped_layers(stacks)):
                same = is_same_function(teacher, made, example)
        except PlanError as problem:
            refused = refused or problem
            continue
        except Exception as cause:  # a forward may raise anything where a kind of layer is missing
            refused = refused or PlanError(f"- {type(teacher).__name__} does not run with these layers alone: {cause}")
            continue
        if same:
            return made
    raise refused or PlanError(
        f"- without {'; '.join(map(_words, stacks))} {type(teacher).__name__} is not the same model of fewer layers: "
        "some of its layers use what others make"
    )


def spread_layers(teacher: PreTrainedModel, stacks: Sequence[Stack], example: Example) -> tuple[Stack, ...]:
    """Return the stacks with layers that stay: given ones, or those that are spread over all, or else the first."""
    spread = tuple(each if each.kept is not None else replace(each, kept=each.spread) for each in stacks)
    if fits(teacher, spread, example):
        return spread
    return tuple(each if each.kept is not None else replace(each, kept=tuple(range(each.new))) for each in stacks)


def dropped_layers(stacks: Sequence[Stack]) -> list[str]:
    """Return the names of all layers that do not stay."""
    return [
        f"{name}.{layer}"
        for stack in stacks
        for name in stack.lists
        for layer in range(stack.old)
        if layer not in (stack.kept or ())
    ]


def fits(teacher: PreTrainedModel, stacks: Sequence[Stack], example: Example) -> bool:
    """Return whether the layers that stay make a model; see `shallow_teacher`."""
    try:
        shallow_teacher(teacher, stacks, example)
    except PlanError:
        return False
    return True


def _config(config: PretrainedConfig, stacks: Sequence[Stack], way: Way) -> PretrainedConfig:
    for stack in stacks:
        config = shallow_config(config, stack.entry, stack.kept or range(stack.new), way)
    return config


def _on_tensors(teacher: PreTrainedModel, config: PretrainedConfig, stacks: Sequence[Stack]) -> PreTrainedModel:
    """Return a model of this config that holds the parameters and buffers of the teacher."""
    try:
        small = skeleton(type(teacher), config)
    except Exception as cause:  # each class checks its config in its own way
        raise PlanError(f"- {type(teacher).__name__} itself refuses this config: {cause}") from cause
    _refuse_unfit(teacher, small, stacks)
    made = empty_student(teacher, config)
    parameters = dict(teacher.named_parameters(remove_duplicate=False))
    for name, _ in [*made.named_parameters(remove_duplicate=False)]:
        _set(made, name, parameters[source(name, stacks)])
    buffers = dict(teacher.named_buffers(remove_duplicate=False))
    for name, buffer in [*made.named_buffers(remove_duplicate=False)]:
        own = buffers.get(source(name, stacks))
        if own is not None and own.shape == buffer.shape:
            _set(made, name, own)
    made.tie_weights()  # notes what is tied
    return made


def _refuse_unfit(teacher: PreTrainedModel, small: PreTrainedModel, stacks: Sequence[Stack]) -> None:
    """Raise unless each weight of a skeleton has the shape of the teacher's that takes its place.

    Raises:
        PlanError: names the first layer.
    """
    own = {name: tensor.shape for name, tensor in saved_tensors(teacher).items()}
    for name, tensor in saved_tensors(small).items():
        if own.get(source(name, stacks)) != tensor.shape:
            raise PlanError(
                f"- {source(name, stacks)} of the teacher cannot stand at {name}, which is "
                f"{tuple(tensor.shape)}: layers at that place are of another kind"
            )
    count = len(saved_tensors(small)) + sum(1 for name in own if _is_dropped(name, stacks))
    if count != len(own):
        raise PlanError("- some layers have weights that layers at their new places do not have")


def _refuse_no_change(
    teacher: PreTrainedModel, made: PreTrainedModel, stacks: Sequence[Stack], example: Example
) -> None:
    """Raise if a model whose layer should run fewer times computes what the teacher does.

    Raises:
        PlanError: it does.
    """
    if is_same_function(teacher, made, example):
        raise PlanError(
            f"- {' and '.join(stack.title for stack in stacks)} counts no layers of {type(teacher).__name__}, which "
            "computes the same with a smaller number there. Name the entry of its config that counts them, in overrides"
        )


def _is_dropped(name: str, stacks: Sequence[Stack]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in dropped_layers(stacks))


def _set(model: PreTrainedModel, name: str, tensor: Tensor | torch.nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, tensor)


def _words(stack: Stack) -> str:
    gone = [layer for layer in range(stack.old) if layer not in (stack.kept or ())]
    return f"layers {', '.join(map(str, gone))} of {stack.title}"
