"""What is wrong with the sizes of a request, one by one: unknown names, wider sizes, nothing smaller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig

from .config_names import LAYERS, has, is_list, own_name, stated

# Words in the names of sizes that a model computes from others if they are None, as n_inner in GPT-2.
WORDS_OF_DERIVED_SIZES = ("size", "dim", "inner", "width")


def refusal(config: PretrainedConfig, problems: Iterable[str]) -> str:
    """Return the text of a refusal with every problem."""
    return f"No student of this {type(config).__name__}:\n" + "\n".join(f"- {problem}" for problem in problems)


def size_problems(
    config: PretrainedConfig, sizes: Mapping[str, Any], prefix: str = "", *, may_be_equal: bool = False
) -> list[str]:
    """Return what is wrong with each size: unknown, given twice, wider, or all of them equal to the teacher's."""
    problems: list[str] = []
    given: dict[str, str] = {}
    for name, size in sizes.items():
        first = given.setdefault(own_name(config, name), name) if has(config, name) else name
        if first != name:
            problems.append(f"{prefix}{first} and {prefix}{name} are one size; give one of them")
        problems += _problems_of(config, name, size, prefix, may_be_equal)
    if not problems and not may_be_equal and not any(_is_smaller(config, name, size) for name, size in sizes.items()):
        problems.append("every size equals the teacher's; give at least one smaller size")
    return problems


def _problems_of(config: PretrainedConfig, name: str, size: Any, prefix: str, may_be_equal: bool) -> list[str]:
    where = f"{prefix}{name}"
    if name == LAYERS and isinstance(size, Mapping):
        return _layer_problems(config, size, prefix)
    if not has(config, name):
        return [_unknown_name(config, where)]
    old = stated(config, name)
    if isinstance(size, Mapping):
        if isinstance(old, PretrainedConfig):
            return size_problems(old, size, f"{where}.", may_be_equal=may_be_equal)
        return [f"{where} is not a nested config of {type(config).__name__}; give one number"]
    if isinstance(old, (list, tuple)) or isinstance(size, (list, tuple)):
        return _list_problems(where, old, size)
    return _number_problems(where, old, size)


def _is_smaller(config: PretrainedConfig, name: str, size: Any) -> bool:
    """Return whether a legal size makes, or may make, anything smaller: a size that the model computes is not known."""
    old = stated(config, name)
    if isinstance(size, Mapping) or old is None:
        return True
    return list(size) != list(old) if isinstance(old, (list, tuple)) else size < old


def _number_problems(where: str, old: object, size: int) -> list[str]:
    if old is None:
        return []
    if type(old) is not int:
        return [f"{where} is not a size: the teacher's value is {old!r}; leave it out"]
    return [_wider(where, size, old)] if size > old else []


def _list_problems(where: str, old: object, sizes: object) -> list[str]:
    """Return what is wrong with a list of sizes, such as the widths of the stages of a hierarchical model."""
    if not isinstance(old, (list, tuple)):
        return [f"{where}={sizes!r} is a list, the teacher's is {old!r}; give one number"]
    if not isinstance(sizes, (list, tuple)) or len(sizes) != len(old):
        return [f"{where}={sizes!r} is not a list of {len(old)} sizes, as the teacher's {list(old)} is"]
    if not all(type(of) is int for of in old):
        return [f"{where} is not a list of sizes: the teacher's value is {old!r}; leave it out"]
    pairs = enumerate(zip(sizes, old, strict=True))
    return [_wider(f"{where}[{at}]", size, of) for at, (size, of) in pairs if size > of]


def _layer_problems(config: PretrainedConfig, layers: Mapping[Any, Any], prefix: str) -> list[str]:
    """Return what is wrong with sizes for single layers, by the number of the layer."""
    problems = []
    own = list(config.per_layer_config) if config.to_dict().get(LAYERS) else []
    for layer, sizes in layers.items():
        where = f"{prefix}{LAYERS}[{layer}]"
        if not own:
            problems.append(f"{where}: all layers of this {type(config).__name__} have the same sizes; leave it out")
        elif not str(layer).isdigit() or int(layer) >= len(own):
            problems.append(f"{where}: the layers are 0 to {len(own) - 1}")
        elif not isinstance(sizes, Mapping):
            problems.append(f"{where} is {sizes!r}; give a dictionary of sizes")
        else:
            problems += size_problems(own[int(layer)], sizes, f"{where}.")
    return problems


def _wider(where: str, size: int, old: int) -> str:
    return f"{where}={size} is wider than the teacher's {old}; a student can only be narrower"


def _unknown_name(config: PretrainedConfig, where: str) -> str:
    nested = [key for key, value in vars(config).items() if isinstance(value, PretrainedConfig)]
    hint = f"; for parts of it use overrides={{{nested[0]!r}: {{...}}}}" if nested else ""
    return f"{type(config).__name__} has no {where}; its sizes are {', '.join(_names_of_sizes(config))}{hint}"


def _names_of_sizes(config: PretrainedConfig) -> list[str]:
    own = {name for name, value in vars(config).items() if _may_be_size(name, value)}
    names = sorted((own | set(config.attribute_map)) - {"transformers_version"})
    return [name for name in names if not name.startswith("_") and not name.endswith("_id")]


def _may_be_size(name: str, value: object) -> bool:
    if value is None:
        return any(word in name for word in WORDS_OF_DERIVED_SIZES)
    return type(value) is int or is_list(value)
