"""Entries of a config, by the common name of a size or by the config's own name for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

LAYERS = "per_layer_config"  # transformers' name for sizes that differ from layer to layer

Sizes = dict[str, Any]
"""Sizes by name, nested as the config is: numbers, lists of numbers, or `Sizes` of a part."""


def own_name(config: PretrainedConfig, name: str) -> str:
    """Return the config's own name for `name`, as `n_embd` for `hidden_size`."""
    return config.attribute_map.get(name, name)


def has(config: PretrainedConfig, name: str) -> bool:
    """Return whether `config` has an entry of that name, common or its own."""
    return name in {*vars(config), *config.attribute_map}


def stated(config: PretrainedConfig, name: str) -> Any:
    """Return an entry of `config`, None where it has none; if single layers override it, the common value.

    A config with `per_layer_config` raises when such an entry is read as an attribute.
    """
    own = own_name(config, name)
    return vars(config)[own] if own in vars(config) else getattr(config, name, None)


def requested_size(config: PretrainedConfig, requested: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return the size that is requested under the common name or the config's own, else `default`."""
    return requested.get(name, requested.get(own_name(config, name), default))


def is_size(value: object) -> bool:
    """Return whether `value` is a positive whole number."""
    return type(value) is int and value > 0


def is_list(value: object) -> bool:
    """Return whether `value` is a list of sizes with at least one entry."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_size, value))


def holds_sizes(value: object) -> bool:
    """Return whether `value` is a size or a list of sizes."""
    return is_size(value) or is_list(value)


def is_part(name: str, size: object) -> bool:
    """Return whether a requested `size` holds the sizes of a nested config."""
    return isinstance(size, Mapping) and name != LAYERS


def in_proportion(sizes: Sizes, new: int, old: int) -> Sizes:
    """Return each size, for a list each entry, times `new / old`; those left out where that is no whole number."""
    return {name: _times(value, new, old) for name, value in sizes.items() if _divides(value, new, old)}


def _divides(value: Any, new: int, old: int) -> bool:
    return not any(one * new % old for one in (value if isinstance(value, (list, tuple)) else [value]))


def _times(value: Any, new: int, old: int) -> Any:
    return [one * new // old for one in value] if isinstance(value, (list, tuple)) else value * new // old
