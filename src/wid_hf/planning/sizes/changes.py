"""Texts about a student's sizes: which differ from the request, and which follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig

from .config_names import LAYERS, is_part, own_name, stated
from .heads import Heads


def moved_sizes(requested: Mapping[str, Any], sizes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the sizes that are not those requested, as `hidden_size=32 instead of 31`."""
    moved = []
    for name, size in requested.items():
        if is_part(name, size):
            moved += moved_sizes(size, sizes[name], f"{prefix}{name}.")
        elif sizes[name] != size:
            moved.append(f"{prefix}{name}={sizes[name]} instead of {size}")
    return moved


def changes_in_words(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    requested: Mapping[str, Any],
    sizes: Mapping[str, Any],
    part: str = "",
) -> list[str]:
    """Return in words how heads change, then each of `sizes` that follows from those requested, parts included."""
    inside = f" in {part}" if part else ""
    heads = _heads_in_words(teacher, student, inside)
    said = {"num_attention_heads", "num_key_value_heads", "head_dim"} if heads else set()
    said = {own_name(teacher, name) for name in (*said, *requested)}
    words = list(heads)
    for name, size in sizes.items():
        if is_part(name, size):
            below = f"{part}.{name}".lstrip(".")
            words += changes_in_words(getattr(teacher, name), getattr(student, name), requested[name], size, below)
        elif own_name(teacher, name) not in said:
            words += _size_in_words(teacher, name, size, inside)
    return words


def _heads_in_words(teacher: PretrainedConfig, student: PretrainedConfig, inside: str) -> Iterable[str]:
    old, new = (Heads.of(config, {}) for config in (teacher, student))
    if old is None or new is None or old.hidden == new.hidden:
        return []
    shared = old.groups not in (None, old.count)
    before, after = (f" and {heads.groups} of keys and values" if shared else "" for heads in (old, new))
    now = f"{new.count} of width {new.width}{after}"
    return [f"{old.count} heads of width {old.width}{before} become {now}{inside}"]


def _size_in_words(teacher: PretrainedConfig, name: str, size: object, inside: str) -> list[str]:
    if name == LAYERS:
        return [f"sizes of single layers follow{inside}"]
    old = stated(teacher, name)
    return [f"{name} {old} becomes {size}{inside}"] if old != size else []
