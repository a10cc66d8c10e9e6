"""Sizes, other than those of heads, that may have to change with the hidden size; a config does not say which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from transformers import PretrainedConfig

from .config_names import Sizes, in_proportion, is_size, own_name, requested_size, stated

WORDS_OF_WIDTHS = ("size", "dim", "width", "d_")


def following_widths(config: PretrainedConfig, requested: Mapping[str, Any]) -> list[Sizes]:
    """Return alternative sets of sizes that change with the hidden size; the first is empty.

    - Other sizes that equal the old hidden size. Some models have a projection only where their embedding size
      differs from the hidden size; where the two were equal, the plan refuses a hidden size that shrinks alone.
    - Other sizes that equal the new hidden size, scaled as well: a projection must not vanish either.
    - Multiples of the old one, where they are hidden sizes too: an attention that reads two streams (Zamba).
    - Lists of sizes that add up to the old one (axial positions), scaled as well.
    """
    old = stated(config, "hidden_size")
    new = requested_size(config, requested, "hidden_size", old)
    if type(old) is not int or type(new) is not int or new == old:
        return [{}]
    widths = _other_widths(config, requested)
    alternatives = (
        dict.fromkeys(_equal_to(old, widths), new),
        in_proportion(_equal_to(new, widths), new, old),
        in_proportion(_multiples_of(old, widths), new, old),
        in_proportion(_shares_of(old, widths), new, old),
    )
    return [{}, *filter(None, alternatives)]


def _other_widths(config: PretrainedConfig, requested: Iterable[str]) -> Sizes:
    """Return every entry whose name is that of a width, except the hidden size and those requested."""
    given = {"vocab_size", own_name(config, "hidden_size"), *(own_name(config, name) for name in requested)}

    def is_width(name: str) -> bool:
        return any(word in name for word in WORDS_OF_WIDTHS) and not name.endswith("_id")

    return {name: value for name, value in vars(config).items() if name not in given and is_width(name)}


def _equal_to(size: int, widths: Sizes) -> Sizes:
    return {name: value for name, value in widths.items() if type(value) is int and value == size}


def _multiples_of(size: int, widths: Sizes) -> Sizes:
    hidden = {name: value for name, value in widths.items() if "hidden_size" in name and type(value) is int}
    return {name: value for name, value in hidden.items() if value > size and value % size == 0}


def _shares_of(size: int, widths: Sizes) -> Sizes:
    lists = {name: value for name, value in widths.items() if isinstance(value, (list, tuple))}
    return {name: shares for name, shares in lists.items() if {*map(type, shares)} == {int} and sum(shares) == size}


def expanded_heads(config: PretrainedConfig, requested: Mapping[str, Any], strategy: str) -> list[Sizes]:
    """Return alternatives for heads whose total width is a multiple of the hidden size, as in state space models.

    `expand * hidden_size = heads * head width` holds in Mamba 2 and similar models, and their configs do not
    compute one from the others. By the strategy, heads become narrower or fewer; or they stay.
    """
    old = getattr(config, "hidden_size", None)
    new = requested_size(config, requested, "hidden_size", old)
    if not isinstance(old, int) or new == old:
        return [{}]
    sizes = {name: size for name, size in vars(config).items() if is_size(size)}
    pairs = [pair for pair in _counts_and_widths(sizes, old) if not {*pair} & {*requested}]
    by_count = in_proportion({count: sizes[count] for count, _ in pairs}, new, old)
    by_width = in_proportion({width: sizes[width] for _, width in pairs}, new, old)
    ways = (by_count, by_width) if strategy == "head" else (by_width, by_count)
    return [*filter(None, ways), {}]


def _counts_and_widths(sizes: Mapping[str, int], hidden: int) -> list[tuple[str, str]]:
    """Return pairs of names, number and width of heads, whose product is the expanded hidden size."""
    expand = next((size for name, size in sizes.items() if name.split("_")[-1] == "expand"), 0)
    of_heads = [name for name in sizes if "head" in name]
    counts = [name for name in of_heads if "heads" in name]
    pairs = product(counts, [name for name in of_heads if name not in counts])
    return [(count, width) for count, width in pairs if sizes[count] * sizes[width] == expand * hidden]
