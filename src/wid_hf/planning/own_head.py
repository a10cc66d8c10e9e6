"""A head of its own for a teacher whose output embedding shares the table of tokens, and what it would cost.

Takes a teacher; gives a copy that shares every other tensor with it, or the price in words. Called by `student_plan`.
The class itself says which weights are separate then: it is made without a tie on the meta device. No model is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from math import prod
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..coupling import Plan, Trace
from ..coupling.trace import aliases, saved_tensors
from ..errors import ConfigError
from .same_function import is_same_function
from .skeleton import skeleton
from .tracing import accepted_example


def with_own_head(teacher: PreTrainedModel, tie: bool | None, inputs: Mapping[str, Any] | None) -> PreTrainedModel:
    """Return `teacher` as `WidConfig.tie_word_embeddings` wants it, without changing it.

    Args:
        teacher: a model that passes `check_teacher`.
        tie: None or what the teacher is already returns the teacher itself. False gives a tied one a head of its own:
            a copy of the modules and of the config, with the teacher's own tensors except those that are now apart.
        inputs: keyword arguments of one forward; by default made from the teacher's config.

    Raises:
        ConfigError: there is no output embedding; it is not tied and should be; or the class cannot untie it so that
            the teacher computes the same.
    """
    if tie is None:
        return teacher
    name, given = type(teacher).__name__, f"tie_word_embeddings={tie}"
    weight = _head(teacher)
    if weight is None:
        raise ConfigError(f"{given}: {name} has no output embedding. Leave tie_word_embeddings out (None).")
    head = _tied_name(teacher, weight)
    if tie and head is None:
        raise ConfigError(
            f"{given}: the output embedding of this {name} has weights of its own, and the student's are computed from "
            "these. Leave tie_word_embeddings out (None), or pass False, or a teacher whose embeddings are tied."
        )
    if tie or head is None:
        return teacher
    untied, own = _untied(teacher, head)
    if not own:
        raise ConfigError(
            f"{given}: a {name} loaded with this config would have no head of its own, or would part other "
            "tables as well. Leave tie_word_embeddings out (None)."
        )
    if not is_same_function(teacher, untied, accepted_example(teacher, inputs)):
        raise ConfigError(
            f"{given}: {name} computes something else without the tie (some classes scale what a tied head reads). "
            "Leave tie_word_embeddings out (None)."
        )
    for parameter in set(own.values()):
        parameter.data = parameter.data.clone()
    return untied


def offered_head(teacher: PreTrainedModel, trace: Trace, plan: Plan) -> str:
    """Return in words what a head of its own would add to the student; empty if it has one or cannot have one.

    Args:
        teacher: as it was traced.
        trace: of the teacher.
        plan: sizes of the student.
    """
    weight = _head(teacher)
    head = _tied_name(teacher, weight) if weight is not None else None
    if head is None or plan.shape(trace.aliases[head]) == tuple(trace.weights[trace.aliases[head]].shape):
        return ""
    try:
        untied, own = _untied(teacher, head)
        if not own or not is_same_function(teacher, untied, trace.examples[0]):
            return ""
    except Exception:  # each class checks its config in its own way; what it refuses is not offered
        return ""
    added = sum(prod(plan.shape(trace.aliases[name])) for name in own)
    tokens = trace.weights[trace.aliases[head]].shape[0]
    return (
        f"The head shares the table of {tokens:,} tokens. A head of its own (tie_word_embeddings=False) would add "
        f"{added:,} parameters."
    )


def _head(teacher: PreTrainedModel) -> Tensor | None:
    weight = getattr(teacher.get_output_embeddings(), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _tied_name(teacher: PreTrainedModel, weight: Tensor) -> str | None:
    """Return the name of the output embedding's weight if it is the same tensor as a table that is looked up."""
    if not any(weight is module.weight for module in teacher.modules() if isinstance(module, nn.Embedding)):
        return None
    layer = teacher.get_output_embeddings()
    place = next((name for name, module in teacher.named_modules() if module is layer), None)
    name = f"{place}.weight" if place is not None else ""
    return name if name in saved_tensors(teacher) else None


def _untied(teacher: PreTrainedModel, head: str) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
    """Return a copy on the same tensors without the tie, and its new parameters, on the same memory still.

    The parameters are by the first name that each has in a checkpoint. There are none if the class keeps the tie, or
    does not keep the other uses of the table together (encoder and decoder of BART).
    """
    untied = deepcopy(teacher, {id(tensor): tensor for tensor in chain(teacher.parameters(), teacher.buffers())})
    _set_untied(untied)
    names, tied, weights = _names_when_loaded(untied), aliases(teacher), saved_tensors(teacher)
    own: dict[str, nn.Parameter] = {}
    if not _is_head_alone(head, names, tied):
        return untied, own
    for name, first in names.items():
        if tied[first] != first:
            path, _, attribute = name.rpartition(".")
            old = weights[first]
            fresh = own.setdefault(first, nn.Parameter(old.detach(), requires_grad=old.requires_grad))
            setattr(untied.get_submodule(path), attribute, fresh)
    untied.tie_weights()  # notes what is tied still
    return untied, own


def _set_untied(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings=False` in the config of `model` and of each model in it that has a tie."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in [model.config.get_text_config(), *configs]:
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _is_head_alone(head: str, names: Mapping[str, str], tied: Mapping[str, str]) -> bool:
    """Return whether the ties `names` part `head` from the other names that it has by the ties `tied`, and only it."""
    if set(names) != set(tied):
        return False
    others = {names[name] for name, first in tied.items() if first == tied[head] and name != head}
    return len(others) == 1 and names[head] not in others


def _names_when_loaded(model: PreTrainedModel) -> dict[str, str]:
    """Return the ties that the model's class makes from its config as it would be read from a file."""
    config = type(model.config).from_dict(model.config.to_dict())
    return aliases(skeleton(type(model), config))
