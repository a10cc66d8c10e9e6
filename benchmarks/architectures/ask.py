"""Which sizes to ask for: half of every width that a config states, whatever it calls it.

Takes a config, gives what `WidConfig(overrides=...)` takes, the most first. Called by `check`. Hidden sizes are found
by their names and by the shape of the config (lists of widths, parts of composite models), not by model type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

Sizes = dict[str, Any]
HIDDEN = re.compile(
    r"hidden_sizes?$|hidden_size_global|^d_model$|^n_embd$|^emb_dim$|^embed_dims?$|_unit_dims$|^d_latents$"
)
SHARES = re.compile(r"^axial_.*dim$|^(coordinate|shape)_size$")  # embeddings side by side that make up the hidden size
INNER = re.compile(r"intermediate_size|ffn|^d_ff$|^n_inner$|^hidden_dim$|feed_forward_size")
CHANNELS = re.compile(r"channels$|embedding_size$")  # of convolutional models: they have lists of hidden sizes
HEADS = re.compile(r"heads$|^n_head$")


def asks(config: PretrainedConfig) -> list[Sizes]:
    """Return requests, the most first.

    All widths of all parts halved; then fewer names; three quarters of the hidden sizes, since half of one may equal
    another width by accident; then single parts, and single widths.
    """
    requests = [_whole(config, choice) for choice in _CHOICES]
    for name, part in _parts(config).items():
        requests += [_under(name, _whole(part, choice)) for choice in (_everything, _plain, _inner)]
    return [sizes for at, sizes in enumerate(requests) if sizes and sizes not in requests[:at]]


def by_default(config: PretrainedConfig) -> Sizes:
    """Return half the hidden size alone: what `WidConfig(hidden_size=half)` says, under the config's own name.

    A composite model that has no hidden size itself is asked for those of its parts.
    """
    own = config.attribute_map.get("hidden_size", "hidden_size")
    if own in _halves(config):
        return {own: _halves(config)[own]}
    return {
        **_own_hidden(config),
        **{name: sizes for name, part in _parts(config).items() if (sizes := by_default(part))},
    }


def wanted(config: PretrainedConfig) -> set[str]:
    """Return the sizes that must all shrink for a family to count as working."""
    return set(leaf_names(_whole(config, _plain))) or set(leaf_names(asks(config)[0]))


def is_hidden(config: PretrainedConfig, name: str) -> bool:
    """Return whether `name`, with dots for parts, is a width of a residual stream."""
    first, _, rest = name.partition(".")
    return is_hidden(getattr(config, first), rest) if rest else first in _hidden_names(config)


def has_heads(config: PretrainedConfig) -> bool:
    """Return whether any part counts attention heads by one number."""
    counts = (value for name, value in vars(config).items() if HEADS.search(name))
    return any(type(count) is int and count > 1 for count in counts) or any(map(has_heads, _parts(config).values()))


def leaf_names(sizes: Sizes) -> tuple[str, ...]:
    """Return all names, those of parts with dots: `text_config.hidden_size`."""
    names: list[str] = []
    for name, size in sizes.items():
        names += [f"{name}.{below}" for below in leaf_names(size)] if isinstance(size, dict) else [name]
    return tuple(names)


def _everything(config: PretrainedConfig) -> Sizes:
    """Every hidden size and its shares, inner width, list of channels, and heads that fill the hidden size."""
    return {**_hidden(config), **_shares(config), **_channels(config), **_inner(config), **_filling_heads(config)}


def _with_channels(config: PretrainedConfig) -> Sizes:
    return {**_hidden(config), **_inner(config), **_channels(config)}


def _after_stem(config: PretrainedConfig) -> Sizes:
    """Channels but those that a stem gives, which EfficientNet takes from elsewhere."""
    sizes = _channels(config)
    return {name: [vars(config)[name][0], *size[1:]] if name == "in_channels" else size for name, size in sizes.items()}


def _plain(config: PretrainedConfig) -> Sizes:
    return {**_own_hidden(config), **_inner(config)}


def _plain_with_heads(config: PretrainedConfig) -> Sizes:
    return {**_plain(config), **_filling_heads(config)}


def _wide(config: PretrainedConfig) -> Sizes:
    hidden = {name: _scaled(vars(config)[name], 4, 3) for name in _own_hidden(config)}
    return {**hidden, **_inner(config)} if hidden else {}


def _own_hidden(config: PretrainedConfig) -> Sizes:
    hidden = _hidden(config)
    own = config.attribute_map.get("hidden_size", "hidden_size")
    lists = {name: size for name, size in hidden.items() if isinstance(size, list) or name == "embed_dim"}
    return {own: hidden[own], **lists} if own in hidden else hidden


def _inner(config: PretrainedConfig) -> Sizes:
    return {name: size for name, size in _halves(config).items() if INNER.search(name)}


_CHOICES = (_everything, _with_channels, _after_stem, _plain_with_heads, _plain, _wide, _own_hidden, _inner)


def _hidden(config: PretrainedConfig) -> Sizes:
    names = _hidden_names(config)
    return {name: size for name, size in _halves(config).items() if name in names}


def _shares(config: PretrainedConfig) -> Sizes:
    return {name: size for name, size in _halves(config).items() if SHARES.search(name)}


def _hidden_names(config: PretrainedConfig) -> set[str]:
    own = config.attribute_map.get("hidden_size", "hidden_size")
    names = {name for name in vars(config) if name == own or (HIDDEN.search(name) and not INNER.search(name))}
    return names or {name for name, size in _channels(config).items() if isinstance(size, list)}


def _channels(config: PretrainedConfig) -> Sizes:
    """Channels of a model with stages. A list that begins with the three colours of pictures keeps that odd number."""
    halves = _halves(config)
    if not any(isinstance(size, list) for size in halves.values()):
        return {}
    return {name: size for name, size in halves.items() if CHANNELS.search(name) and name != "num_channels"}


def _filling_heads(config: PretrainedConfig) -> Sizes:
    """Heads whose number times width is the expanded hidden size: in Mamba 2 nobody else knows that they are fewer."""
    own = vars(config)
    expand = next((own[name] for name in ("expand", "mamba_expand") if name in own), None)
    hidden = own.get(config.attribute_map.get("hidden_size", "hidden_size"))
    widths = [size for name, size in own.items() if "head" in name and "heads" not in name and type(size) is int]
    if not expand or not isinstance(hidden, int):
        return {}
    filling = {
        name: own[name] for name in own if HEADS.search(name) and "attention" not in name and type(own[name]) is int
    }
    return {
        name: count // 2
        for name, count in filling.items()
        if count % 2 == 0 and any(count * width == expand * hidden for width in widths)
    }


def _whole(config: PretrainedConfig, choice: Callable[[PretrainedConfig], Sizes]) -> Sizes:
    """Return `choice` for a config and all its parts."""
    sizes = choice(config)
    for name, part in _parts(config).items():
        sizes = {**sizes, **_under(name, _whole(part, choice))}
    return sizes


def _under(name: str, sizes: Sizes) -> Sizes:
    return {name: sizes} if sizes else {}


def _parts(config: PretrainedConfig) -> dict[str, PretrainedConfig]:
    return {name: part for name, part in vars(config).items() if isinstance(part, PretrainedConfig)}


def _halves(config: PretrainedConfig) -> Sizes:
    return {name: half for name, value in vars(config).items() if (half := _scaled(value, 2, 1)) not in (None, value)}


def _scaled(value: Any, whole: int, share: int) -> Any:
    """Return `share / whole` of a width or of each width in a list, where that is a whole number; else None."""
    if isinstance(value, (list, tuple)) and value and all(type(entry) is int for entry in value):
        new = [entry // whole * share if entry % whole == 0 else entry for entry in value]
        return new if new != list(value) else None
    return value // whole * share if type(value) is int and value > 1 and value % whole == 0 else None
