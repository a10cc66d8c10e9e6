"""A model with fewer tokens: the rows of the others go, everything else stays as it is.

Takes a model and the numbers of the tokens to keep; gives a copy on the model's own tensors, of which only those with
an axis of tokens are new. Two empty models of the class, one for each size of the vocabulary, show which these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ...coupling import Example
from ...errors import ConfigError, PlanError
from ..same_function import example_outputs
from ..skeleton import skeleton
from ..teacher_check import check_teacher
from ..tracing import accepted_example
from .token_ids import Numbers, numbers_in

Shape = tuple[int, ...]
ROUNDING = 16  # units of the last place, in which products with fewer columns may differ


def with_fewer_tokens(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return `teacher` with only the tokens `kept`, without changing it.

    For texts of these tokens it computes what the teacher computes, which is tested on an example; of scores for
    tokens it has those of the kept ones.

    Args:
        teacher: a stock transformers model with real weights.
        kept: numbers of tokens in ascending order; token `kept[i]` is `i` from now on. `kept_tokens` gives them, and
            `smaller_tokenizer` the tokenizer for them.

    Returns:
        a copy of the modules and configs. Tables, heads and biases of tokens are new tensors, tied as before; all
        others are the teacher's own. The configs have the new size and the new numbers of special tokens.

    Raises:
        ConfigError: `kept` is not ascending, has other numbers than the teacher's tokens, or lacks one that the config
            names.
        PlanError: the teacher has no vocabulary whose rows can go, or computes something else without them.
        TeacherError: it is not a plain `PreTrainedModel` with weights, or does not run.
    """
    check_teacher(teacher)
    numbers = Numbers(kept, vocabulary_size(teacher))
    _check(numbers)
    smaller = deepcopy(teacher, {id(tensor): tensor for tensor in chain(teacher.parameters(), teacher.buffers())})
    generation = getattr(smaller, "generation_config", None)
    numbers.write([*_configs(smaller), *([generation] if generation is not None else [])])
    before, after = _empty(type(teacher), teacher.config), _empty(type(teacher), smaller.config)
    _cut(smaller, _axes(teacher, before, after, numbers), numbers)
    _follow(smaller, before, after)
    _prove(teacher, smaller, numbers)
    return smaller


def named_tokens(model: PreTrainedModel) -> set[int]:
    """Return the numbers of the tokens that the configs of `model` name, which must be kept."""
    generation = getattr(model, "generation_config", None)
    configs = [*_configs(model), *([generation] if generation is not None else [])]
    return numbers_in(configs, vocabulary_size(model))


def vocabulary_size(teacher: PreTrainedModel) -> int:
    """Return how many rows the tables of tokens have.

    Raises:
        PlanError: there is no such table.
    """
    size = getattr(teacher.config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(size, int):
        raise PlanError(
            f"{type(teacher).__name__} has no table of tokens: its config has no vocab_size (it may read characters, "
            "images or sound). Its tokens stay as they are."
        )
    return size


def _check(numbers: Numbers) -> None:
    """Refuse numbers that are not ascending, or not those of tokens.

    Raises:
        ConfigError: says which, and how to get some.
    """
    kept = list(numbers.kept)
    how = "kept_tokens(tokenizer, ...) gives them."
    if not kept or kept != sorted(set(kept)):
        raise ConfigError(f"kept must be numbers of tokens in ascending order, each once, and at least one. {how}")
    if outside := [token for token in (kept[0], kept[-1]) if token not in range(numbers.size)]:
        raise ConfigError(f"kept has {outside[0]}; the model has tokens 0 to {numbers.size - 1}. {how}")


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Return every config in `model` once, those inside of others and the modules' own copies too."""
    found: dict[int, PretrainedConfig] = {}
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PretrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += vars(config).values()
    return list(found.values())


def _empty(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Return a model without memory for its weights, or refuse if its class refuses the config."""
    try:
        return skeleton(model_class, config)
    except Exception as refusal:  # each class checks its config in its own way, and raises other errors
        size = config.get_text_config(decoder=True).vocab_size
        raise PlanError(f"{model_class.__name__} cannot be made with {size:,} tokens: {refusal}") from refusal


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, saved or not, under all their names."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))


def _axes(
    teacher: PreTrainedModel, before: PreTrainedModel, after: PreTrainedModel, numbers: Numbers
) -> dict[str, list[int]]:
    """Return for each tensor that depends on the size of the vocabulary its axes of tokens.

    Raises:
        PlanError: there is none; or one depends on the size in another way.
    """
    named = [_named(model) for model in (teacher, before, after)]
    change = numbers.size, len(numbers.kept)
    axes: dict[str, list[int]] = {}
    for name in named[1]:
        own, old, new = (tuple(tensors[name].shape) if name in tensors else () for tensors in named)
        if old == new:
            continue
        axes[name] = _token_axes(own, old, new, change)
        if not axes[name]:
            raise PlanError(
                f"{type(teacher).__name__} cannot have {change[1]:,} tokens in place of {change[0]:,}: `{name}` would "
                f"have the shape {new} in place of {own}, and not one row for each token. Keep all tokens."
            )
    if not axes and change[0] != change[1]:
        raise PlanError(
            f"{type(teacher).__name__} has no tensor with a row for each of the {change[0]:,} tokens of its config, so "
            "that none can go. Keep all tokens."
        )
    return axes


def _token_axes(own: Shape, old: Shape, new: Shape, change: tuple[int, int]) -> list[int]:
    """Return the axes of a tensor whose size changes as that of the vocabulary does; none if more than that changes."""
    axes = [at for at, sizes in enumerate(zip(old, new, strict=False)) if sizes == change]
    expected = tuple(change[1] if at in axes else size for at, size in enumerate(own))
    return axes if own == old and expected == new else []


def _cut(model: PreTrainedModel, axes: dict[str, list[int]], numbers: Numbers) -> None:
    """Give `model` new tensors with fewer rows, one for all names of the same."""
    cut: dict[int, Tensor] = {}
    for name, tensor in _named(model).items():
        if name not in axes:
            continue
        if id(tensor) not in cut:
            rows = torch.tensor(numbers.kept, device=tensor.device)
            fewer = tensor.detach()
            for axis in axes[name]:
                fewer = fewer.index_select(axis, rows)
            is_parameter = isinstance(tensor, nn.Parameter)
            cut[id(tensor)] = nn.Parameter(fewer, tensor.requires_grad) if is_parameter else fewer
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, cut[id(tensor)])


def _follow(model: PreTrainedModel, before: PreTrainedModel, after: PreTrainedModel) -> None:
    """Write into `model` the numbers that its modules took from the config: sizes, and the row of the padding."""
    old = dict(before.named_modules())
    for name, module in after.named_modules():
        for attribute, value in vars(module).items():
            former = vars(old[name]).get(attribute)
            if _is_plain(value) and _is_plain(former) and value != former:
                setattr(model.get_submodule(name), attribute, value)


def _is_plain(value: Any) -> bool:
    """Return whether `value` is a number, None, or a list of these."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (int, float))


def _prove(teacher: PreTrainedModel, smaller: PreTrainedModel, numbers: Numbers) -> None:
    """Run an example through both.

    Raises:
        PlanError: their outputs differ.
        TeacherError: the smaller model does not run.
    """
    example = accepted_example(smaller, None)
    given = example_outputs(smaller, example)
    if not _are_same(example_outputs(teacher, _in_old_numbers(example, numbers)), given, numbers):
        raise PlanError(
            f"{type(teacher).__name__} computes something else for the same text with {len(numbers.kept):,} tokens in "
            f"place of {numbers.size:,}: it does more with the numbers of tokens than look up their rows (some count "
            "positions from the number of the padding). Keep all tokens up to the last special one, or all."
        )


def _in_old_numbers(example: Example, numbers: Numbers) -> Example:
    """Return the example of the smaller model for the teacher."""
    inputs = dict(example.inputs)
    for name, value in example.inputs.items():
        if name.endswith("input_ids"):
            inputs[name] = torch.tensor(numbers.kept, device=value.device)[value]
    return replace(example, inputs=inputs)


def _are_same(expected: Sequence[Tensor], given: Sequence[Tensor], numbers: Numbers) -> bool:
    """Return whether outputs are equal; scores for tokens, from a product of another shape, but for rounding."""
    if len(expected) != len(given):
        return False
    for old, new in zip(expected, given, strict=True):
        axes = [at for at, sizes in enumerate(zip(old.shape, new.shape, strict=False)) if sizes[0] != sizes[1]]
        for axis in axes:
            if old.shape[axis] != numbers.size:
                return False
            old = old.index_select(axis, torch.tensor(numbers.kept, device=old.device))  # noqa: PLW2901
        largest = old[old.isfinite()].abs().max().item() if axes and old.isfinite().any() else 0.0
        rounding = ROUNDING * torch.finfo(old.dtype).eps * largest if old.is_floating_point() else 0.0
        if old.shape != new.shape or not torch.allclose(old, new, rtol=0, atol=rounding, equal_nan=True):
            return False
    return True
