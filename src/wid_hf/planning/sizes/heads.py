"""Attention heads: how many there are, how wide each is, and how many keys and values, as the hidden size shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import gcd
from typing import Any

from transformers import PretrainedConfig

from .config_names import LAYERS, Sizes, has, holds_sizes, in_proportion, is_size, own_name, requested_size, stated
from .meanings import Meaning, Strategy, Way

NEAREST = 6  # hidden sizes that are tried if the one requested cannot be divided into heads


class IndivisibleError(Exception):
    """Sizes that do not divide into heads; the message names the nearest that do."""


@dataclass(frozen=True)
class Heads:
    """The heads of one config, and how a request may change them.

    Attributes:
        config: the teacher's.
        requested: sizes requested.
        hidden: the teacher's hidden size.
        count: its number of (query) heads.
        groups: its number of key/value heads, None where it does not say.
        stated: the width of a head, None where it follows from the others.
    """

    config: PretrainedConfig
    requested: Mapping[str, Any]
    hidden: int
    count: int
    groups: int | None
    stated: int | None

    @classmethod
    def of(cls, config: PretrainedConfig, requested: Mapping[str, Any]) -> Heads | None:
        """Return the heads of a config that states a hidden size and a number of heads, each as one number."""
        hidden, count = stated(config, "hidden_size"), stated(config, "num_attention_heads")
        if not is_size(hidden) or not is_size(count) or count > hidden:
            return None
        width = stated(config, "head_dim") if has(config, "head_dim") else None
        groups = stated(config, "num_key_value_heads")
        return cls(config, requested, hidden, count, *(n if is_size(n) else None for n in (groups, width)))

    @property
    def hidden_name(self) -> str:
        """The name under which the hidden size was requested."""
        own = own_name(self.config, "hidden_size")
        return own if own in self.requested else "hidden_size"

    @property
    def new_hidden(self) -> int:
        """The hidden size requested."""
        return requested_size(self.config, self.requested, "hidden_size", self.hidden)

    @property
    def requested_count(self) -> int | None:
        """The number of heads requested."""
        return requested_size(self.config, self.requested, "num_attention_heads")

    @property
    def free(self) -> bool:
        """Whether the number of heads follows from the hidden size."""
        return self.requested_count is None and self.new_hidden != self.hidden

    @cached_property
    def width(self) -> int:
        """The teacher's width of a head."""
        return self.stated or self.hidden // self.count

    def by(self, strategy: Strategy) -> list[Sizes]:
        """Return the sizes that follow by an explicit strategy, in order of preference.

        Where the config states the width of a head and the heads stay, the width is scaled first; if the plan
        refuses that because the width is frozen (rotary positions), it stays.

        Raises:
            IndivisibleError: the hidden size requested does not divide.
        """
        if strategy == "head" and self.free:
            return [self._fewer()]
        if not self.stated:
            return self._narrower()
        with suppress(IndivisibleError):
            narrower = self._narrower()
            return [*narrower, {}] if {} not in narrower else narrower
        return [{}]

    def layouts(self, way: Way) -> list[Sizes]:
        """Return the sizes that follow when heads change in this way, in order of preference.

        Raises:
            IndivisibleError: the hidden size requested does not divide.
        """
        if way is Way.NARROWER:
            return self._with_groups([one for following in self._narrower() for one in self._everywhere(following)])
        if way is Way.AS_THEY_ARE:
            return self._with_groups(self._as_they_are())
        if not self.free:
            return []
        if way is Way.FEWER:
            return self._everywhere(self._fewer())
        return self._other_counts()

    def meaning(self, following: Sizes, way: Way, strategy: Strategy | None = None) -> Meaning:
        """Return the meaning of the request with these sizes that follow; by default the strategy follows from them."""
        sizes = {**following, **self.requested}
        count = requested_size(self.config, sizes, "num_attention_heads", self.count)
        return Meaning(sizes, way, strategy or ("head" if count < self.count else "dim"), (way,))

    def nearest_sizes(self) -> list[int]:
        """Return hidden sizes near the one requested that divide into heads, the nearest first.

        The nearest two with heads as wide as the teacher's are among them: often no other width is possible.
        """
        if self.new_hidden == self.hidden:
            return []
        by_distance = sorted(
            set(range(1, self.hidden)) - {self.new_hidden}, key=lambda size: (abs(size - self.new_hidden), size)
        )
        divisible = (size for size in by_distance if self.at(size)._divides())
        whole = (size for size in by_distance if self.at(size)._keeps_width())
        near = {*islice(divisible, NEAREST), *islice(whole, 2)}
        return [size for size in by_distance if size in near]

    def at(self, size: int) -> Heads:
        """Return the same request with another hidden size."""
        return replace(self, requested={**self.requested, self.hidden_name: size})

    def _divides(self) -> bool:
        return self.new_hidden % (self.requested_count or self.count) == 0 or (self.free and bool(self._other_counts()))

    def _keeps_width(self) -> bool:
        if self.requested_count is not None:
            return self.new_hidden == self.requested_count * self.width
        return self.new_hidden % self.width == 0 and bool(self._groups(self.new_hidden // self.width))

    @property
    def _step(self) -> int:
        """By how much the hidden size shrinks when each group loses the same number of heads."""
        return self.hidden // gcd(self.hidden, self.count, self.groups if self.groups not in (None, 1) else 0)

    def _narrower(self) -> list[Sizes]:
        if self.new_hidden == self.hidden and self.requested_count is None:
            return [{}]
        if not self.stated:
            count = self.requested_count or self.count
            if self.new_hidden % count:
                raise self._indivisible(count, f"does not divide into {count} heads")
            return [{}]
        return self._narrower_by_name()

    def _narrower_by_name(self) -> list[Sizes]:
        """Return narrower heads for a config that states their width."""
        if self._is_requested("head_dim") or self.new_hidden == self.hidden:
            return [{}]
        width = in_proportion({"head_dim": self.stated}, self.new_hidden, self.hidden)
        if not width:
            raise IndivisibleError(
                f"head_dim={self.stated} x {self.new_hidden} / {self.hidden} is not a whole number; also give head_dim"
            )
        return [width]

    def _as_they_are(self) -> list[Sizes]:
        """Return heads that do not follow the hidden size: the config says so, or the model may allow it."""
        writable = not self.stated and "head_dim" in vars(self.config) and not self._is_requested("head_dim")
        return [{"head_dim": self.width}, {}] if writable else [{}]

    def _fewer(self) -> Sizes:
        groups = self.groups if self.groups != 1 else None  # a single one serves any number of heads
        if self.count * self.new_hidden % self.hidden or (groups or 0) * self.new_hidden % self.hidden:
            step = self._step
            raise self._indivisible(step, f"keeps heads of width {self.width} only in steps of {step}")
        following = {"num_attention_heads": self.count * self.new_hidden // self.hidden}
        if groups:
            following["num_key_value_heads"] = groups * self.new_hidden // self.hidden
        return self._without_requested(following)

    def _indivisible(self, step: int, problem: str) -> IndivisibleError:
        """Return the refusal of a hidden size that is not a multiple of `step`."""
        lower = self.new_hidden // step * step
        nearest = [str(size) for size in (lower, lower + step) if 0 < size < self.hidden]
        return IndivisibleError(
            f"hidden_size={self.new_hidden} {problem}; nearest legal: {', '.join(nearest) or 'none'}"
        )

    def _everywhere(self, following: Sizes) -> list[Sizes]:
        """Return `following`, then `following` with the heads that the config counts by other names.

        Those are a decoder's beside an encoder's, a list for all layers, and single layers that state their sizes.
        """
        names = [own_name(self.config, name) for name in following]
        layers = self._of_layers(names)
        found = {**following, **self._scaled(self._named_alike(names)), **({LAYERS: layers} if layers else {})}
        found = self._without_requested(found)
        return [following, found] if found != following else [following]

    def _named_alike(self, names: list[str]) -> Sizes:
        """Return the entries whose names contain one of `names`, or have "decoder" for its "encoder"."""

        def is_alike(name: str) -> bool:
            return any(own in name or own.replace("encoder", "decoder") == name for own in names)

        return {name: value for name, value in vars(self.config).items() if name not in names and is_alike(name)}

    def _of_layers(self, names: Iterable[str]) -> Sizes:
        """Return by layer number the sizes among `names` that a single layer states, scaled as the hidden size."""
        layers = (self.config.to_dict().get(LAYERS) or {}).items()
        single = {layer: self._scaled({name: own[name] for name in names if name in own}) for layer, own in layers}
        return {str(layer): sizes for layer, sizes in single.items() if sizes}  # as JSON spells the number

    def _scaled(self, sizes: Sizes) -> Sizes:
        """Return each size and list of sizes, scaled as the hidden size, if the results are whole numbers."""
        legal = {name: value for name, value in sizes.items() if holds_sizes(value)}
        return in_proportion(legal, self.new_hidden, self.hidden)

    def _other_counts(self) -> list[Sizes]:
        """Return numbers of heads that divide the hidden size: heads of the teacher's width first, then the most."""
        if self.stated:
            return []
        counts = [
            n for n in range(self.count, 0, -1) if self.new_hidden % n == 0 and self.new_hidden // n <= self.width
        ]
        counts.sort(key=lambda n: self.new_hidden // n != self.width)
        layouts = [{"num_attention_heads": n, **groups} for n in counts for groups in self._groups(n)]
        return [self._without_requested(layout) for layout in layouts]

    def _groups(self, count: int) -> list[Sizes]:
        """Return numbers of key/value heads that `count` query heads may have, the teacher's ratio first."""
        if self.groups is None or self.groups == 1 or self._is_requested("num_key_value_heads"):
            return [{}]
        if self.groups == self.count:
            return [{"num_key_value_heads": count}]
        each = self.count // self.groups
        legal = [g for g in range(min(self.groups, count), 0, -1) if count % g == 0 and count // g <= each]
        return [{"num_key_value_heads": g} for g in sorted(legal, key=lambda g: abs(count / g - each))]

    def _with_groups(self, layouts: list[Sizes]) -> list[Sizes]:
        """Return `layouts`; if a number of heads was requested, also each with fewer key/value heads."""
        if self.requested_count is None:
            return layouts
        counts = [{}, *filter(None, self._groups(self.requested_count))]
        return [{**one, **groups} for one in layouts for groups in counts]

    def _is_requested(self, name: str) -> bool:
        return requested_size(self.config, self.requested, name) is not None

    def _without_requested(self, sizes: Sizes) -> Sizes:
        return {name: size for name, size in sizes.items() if not self._is_requested(name)}
