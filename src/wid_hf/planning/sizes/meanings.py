"""One meaning of a request: sizes, and how heads change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from .config_names import Sizes

Strategy = Literal["dim", "head"]


class Way(IntEnum):
    """How heads change when the hidden size shrinks, in the order that `head_strategy="auto"` prefers."""

    NARROWER = 0
    FEWER = 1
    AS_THEY_ARE = 2
    OTHER_COUNT = 3
    NEAREST_SIZE = 4

    @property
    def words(self) -> str:
        """Its name in messages."""
        return ("narrower heads", "fewer heads", "heads as they are", "other head counts", "other hidden sizes")[self]


@dataclass(frozen=True)
class Meaning:
    """One meaning of a request.

    Attributes:
        sizes: those requested and those that follow, nested as the config is.
        way: how heads change; for several parts, the way that is preferred least.
        strategy: the explicit head strategy with the same result; None if there are no heads.
        ways: those of all parts that have heads.
    """

    sizes: Sizes
    way: Way = Way.NARROWER
    strategy: Strategy | None = None
    ways: tuple[Way, ...] = ()

    @property
    def preference(self) -> tuple[int, int]:
        """The sort key that puts the best meaning first."""
        return self.way, sum(self.ways)


def together(own: Meaning, parts: Iterable[str], inside: list[Meaning]) -> Meaning:
    """Return one meaning for a composite config: of its `own` sizes, and of each of its `parts` from `inside`."""
    whole = (own, *inside)
    strategies = [one.strategy for one in whole if one.strategy is not None]
    return Meaning(
        {**own.sizes, **{name: one.sizes for name, one in zip(parts, inside, strict=True)}},
        max(one.way for one in whole),
        max(strategies, default=None),  # "head" where any part has fewer heads
        tuple(way for one in whole for way in one.ways),
    )
