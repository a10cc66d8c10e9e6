"""The student's config: a copy of the teacher's with other sizes, and the complete list of sizes that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

from transformers import PretrainedConfig

from .config_names import LAYERS, Sizes, holds_sizes, is_list, is_part, own_name, stated


def with_sizes(config: PretrainedConfig, sizes: Mapping[str, Any]) -> PretrainedConfig:
    """Return a copy of `config` with `sizes`, as it is once saved and loaded."""
    new = deepcopy(config)
    new.name_or_path = ""  # the teacher's name loads the teacher
    if hasattr(new, "quantization_config"):  # of a file that was dequantized on loading, such as GGUF
        del new.quantization_config
    _write(new, sizes)
    with suppress(Exception):  # a config that its own class refuses: the plan will say so
        _take_computed(new, type(new).from_dict(new.to_dict()))
    return new


def _take_computed(config: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Give `config` the numbers that it has once saved and loaded: some classes compute some from others."""
    for name, value in vars(loaded).items():
        own = vars(config).get(name)
        if isinstance(own, PretrainedConfig):
            _take_computed(own, value)
        elif own != value and type(own) is type(value) and isinstance(value, (int, float, list)):
            setattr(config, name, value)


def _write(config: PretrainedConfig, sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        if name == LAYERS:
            _write_layers(config, size)
        elif isinstance(size, Mapping):
            _write(getattr(config, name), size)
        else:
            old = stated(config, name)
            setattr(config, name, type(old)(size) if isinstance(old, (list, tuple)) else size)  # configs check types


def _write_layers(config: PretrainedConfig, layers: Mapping[Any, Mapping[str, Any]]) -> None:
    own = {int(layer): inside for layer, inside in (config.to_dict().get(LAYERS) or {}).items()}
    new = {int(layer): {**own.get(int(layer), {}), **inside} for layer, inside in layers.items()}
    config.per_layer_config = {**own, **new}


def complete_sizes(teacher: PretrainedConfig, student: PretrainedConfig, sizes: Sizes, others: list[Sizes]) -> Sizes:
    """Return `sizes` and every other size that one of `others` or a head strategy could set, as `student` has it."""
    complete = {
        name: _complete_part(teacher, student, name, size, others) if is_part(name, size) else size
        for name, size in sizes.items()
    }
    named = {own_name(teacher, name) for name in complete}
    for name in dict.fromkeys(_may_follow(teacher, student, others)):
        own = own_name(teacher, name)
        value = stated(student, name)
        if own not in named and own in vars(teacher) and holds_sizes(value):
            named.add(own)
            complete[name] = list(value) if is_list(value) else value
    return complete


def _complete_part(
    teacher: PretrainedConfig, student: PretrainedConfig, name: str, sizes: Sizes, others: list[Sizes]
) -> Sizes:
    inside = [other[name] for other in others if isinstance(other.get(name), Mapping)]
    return complete_sizes(getattr(teacher, name), getattr(student, name), dict(sizes), inside)


def _may_follow(teacher: PretrainedConfig, student: PretrainedConfig, others: list[Sizes]) -> Iterator[str]:
    if stated(teacher, "hidden_size") != stated(student, "hidden_size"):
        yield from ("num_attention_heads", "num_key_value_heads", "head_dim")
    for other in others:
        yield from other
