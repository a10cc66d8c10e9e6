"""Which weights of a wid model train, at which learning rate: for each kind of weight, unless it is frozen.

Takes a wid model and training arguments. Called by `WidTrainer` before it makes an optimizer, and by `WidCallback`
before the first step.
"""

from __future__ import annotations

import warnings

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import TrainingArguments

from ..errors import TrainingError
from ..layers import FoldedWeight

# Weights frozen by a learning rate of 0; a later training may unfreeze them. All other frozen weights were frozen by
# the user and stay frozen. Recorded by tensor, because wid models of one teacher share its tensors.
_FROZEN_BY_RATE: WeakIdKeyDictionary = WeakIdKeyDictionary()


def learning_rates(model: nn.Module, args: TrainingArguments | None) -> dict[nn.Parameter, float | None]:
    """Return the learning rate of every parameter; None means `args.learning_rate`."""
    compactors = _compactors(model)
    for_compactors = getattr(args, "compactor_learning_rate", None)
    for_teacher = getattr(args, "teacher_learning_rate", None)
    return {p: for_compactors if p in compactors else for_teacher for p in model.parameters()}


def freeze_by_rate(model: nn.Module, args: TrainingArguments | None) -> None:
    """Freeze weights whose learning rate is 0; unfreeze weights with a rate above 0 that an earlier call froze.

    What the user froze with `requires_grad_(False)` stays frozen.
    """
    for parameter, rate in learning_rates(model, args).items():
        if rate == 0:
            if parameter.requires_grad:
                _FROZEN_BY_RATE[parameter] = True
            parameter.requires_grad_(False)
        elif _FROZEN_BY_RATE.pop(parameter, False):
            parameter.requires_grad_(True)


def warn_of_rate_without_effect(model: nn.Module, args: TrainingArguments) -> None:
    """Warn if `teacher_learning_rate` is given although the user froze all of the teacher's weights."""
    rate = getattr(args, "teacher_learning_rate", None)
    trains = {parameter for parameter in model.parameters() if parameter.requires_grad}
    if rate and trains and trains <= _compactors(model):
        warnings.warn(
            f"teacher_learning_rate={rate} has no effect: all of the teacher's weights are frozen. To train them, "
            "call requires_grad_(True) on the teacher first.",
            stacklevel=3,
        )


def refuse_untrainable(model: nn.Module) -> None:
    """Refuse to train a model in which all weights are frozen.

    Raises:
        TrainingError: the message says how to make them trainable.
    """
    if any(p.requires_grad for p in model.parameters()):
        return
    configs = getattr(model, "peft_config", {}).values()
    if any(config.inference_mode for config in configs):
        raise TrainingError(
            "Nothing would train: this adapter was loaded for inference. Load it with "
            "PeftModel.from_pretrained(teacher, folder, is_trainable=True) to train it."
        )
    raise TrainingError(
        "Nothing would train: every weight of the model is frozen (requires_grad=False). Call requires_grad_(True) on "
        "those that should train."
    )


def _compactors(model: nn.Module) -> set[nn.Parameter]:
    return {p for m in model.modules() if isinstance(m, FoldedWeight) for p in m.parameters()}
