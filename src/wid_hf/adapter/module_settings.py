"""Settings on the modules of a model that are not in its config: dropout rates, checkpointing, patched methods.

Takes two models of one class; sets on the second what was set on the first. Called by the tuner, when a student is made
from its teacher and when it is merged.
"""

from __future__ import annotations

import warnings
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import TeacherError

CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")
OF_LIBRARIES = ("transformers", "peft", "accelerate", "torch")  # their hooks are registered again where they are needed


def take_over_training_settings(source: nn.Module, target: nn.Module) -> None:
    """Give every module of `target` the dropout rates and checkpointing of the module of that name in `source`.

    A rate of 0 in `target`, from its config, stays: dropout is often switched off by `config.hidden_dropout_prob = 0`,
    although existing modules do not follow it.
    """
    modules = dict(target.named_modules())
    for name, module in source.named_modules():
        if name in modules:
            into = modules[name]
            if isinstance(module, nn.Identity) and isinstance(into, _DropoutNd):
                into.p = 0.0
            for attribute, value in vars(module).items():
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                is_rate = is_number and ("drop" in attribute or isinstance(module, _DropoutNd))
                if attribute in CHECKPOINTING or (is_rate and vars(into).get(attribute)):
                    setattr(into, attribute, value)


def take_over_patches(teacher: nn.Module, student: nn.Module) -> None:
    """Give modules of `student` the methods that were replaced on single modules of `teacher`.

    A method bound to a module of the teacher is bound to the student's module of that name. Hooks are not copied, since
    they may depend on the teacher's sizes; a warning names the first one that a user registered.

    Raises:
        TeacherError: the forward of a module is a plain function, which would run the teacher's module.
    """
    names = {module: name for name, module in teacher.named_modules()}
    for module, name in names.items():
        for attribute, value in _replaced_methods(module).items():
            replaced = value
            if isinstance(value, MethodType) and value.__self__ in names:
                replaced = MethodType(value.__func__, student.get_submodule(names[value.__self__]))
            elif attribute == "forward":
                raise TeacherError(
                    f"The forward of `{name or type(teacher).__name__}` was replaced by a function that is not bound "
                    "to the module: in the student it would run the teacher's module. Bind it "
                    "(module.forward = types.MethodType(function, module)), or replace it on the student."
                )
            setattr(student.get_submodule(name), attribute, replaced)
    if left_behind := [name for module, name in names.items() if any(map(_is_users, _forward_hooks(module)))]:
        warnings.warn(
            f"Hooks on {len(left_behind)} modules of the teacher (the first is `{left_behind[0]}`) do not run in the "
            "student. If they should, register them on model.base_model.model.",
            stacklevel=4,
        )


def _replaced_methods(module: nn.Module) -> dict[str, Any]:
    """Return what was set on `module` itself under the name of a method of its class."""
    if hasattr(module, "_hf_hook"):  # accelerate's hook, which moves inputs to the module's device
        return {}
    methods = {name: value for name, value in vars(module).items() if callable(value)}
    return {name: value for name, value in methods.items() if callable(getattr(type(module), name, None))}


def _forward_hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_users(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").split(".")[0] not in OF_LIBRARIES
