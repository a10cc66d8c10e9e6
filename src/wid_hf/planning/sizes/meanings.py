"""What one request comes to: sizes, and what becomes of heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from .config_names import Sizes

Strategy = Literal["dim", "head"]


class Way(IntEnum):
    """What becomes of heads when the hidden size shrinks, in the order in which `head_strategy="auto"` prefers it."""

    NARROWER = 0
    FEWER = 1
    AS_THEY_ARE = 2
    OTHER_COUNT = 3
    NEAREST_SIZE = 4

    @property
    def words(self) -> str:
        """What messages call it."""
        return ("narrower heads", "fewer heads", "heads as they are", "other head counts", "other hidden sizes")[self]


@dataclass(frozen=True)
class Meaning:
    """One meaning of a request.

    Attributes:
        sizes: those requested and those that follow, nested as the config is.
        way: what becomes of heads; of several parts, the way that is preferred least.
        strategy: the explicit head strategy that it amounts to; None where no heads are concerned.
        ways: of all parts that have heads.
    """

    sizes: Sizes
    way: Way = Way.NARROWER
    strategy: Strategy | None = None
    ways: tuple[Way, ...] = ()

    @property
    def preference(self) -> tuple[int, int]:
        """Sorts meanings, the best first."""
        return self.way, sum(self.ways)


def together(own: Meaning, parts: Iterable[str], inside: list[Meaning]) -> Meaning:
    """Return the meaning of a composite request: `own` sizes, and `inside` has a meaning for each of `parts`."""
    whole = (own, *inside)
    strategies = [one.strategy for one in whole if one.strategy is not None]
    return Meaning(
        {**own.sizes, **{name: one.sizes for name, one in zip(parts, inside, strict=True)}},
        max(one.way for one in whole),
        max(strategies, default=None),  # "head" where any part has fewer heads
        tuple(way for one in whole for way in one.ways),
    )
