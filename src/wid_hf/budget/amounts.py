"""Numbers as people write them: `25%`, `20M`, `20MB`, `5ms`.

Takes a number or a text; gives an `Amount`. Called by `targets`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "": 1.0}
MILLISECONDS = {"": 1.0, "ms": 1.0, "s": 1e3}
_WRITTEN = re.compile(r"([0-9][0-9_,]*\.?[0-9]*|\.[0-9]+)\s*([a-z%]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """A number above 0, or with `is_share` that part of what the teacher has."""

    number: float
    is_share: bool = False

    def of(self, teacher: float) -> float:
        """Return the number, for a teacher that has so much."""
        return self.number * teacher if self.is_share else self.number


def amount(given: object, units: Mapping[str, float], *, shares: bool = True) -> Amount | None:
    """Return the amount that is given as a number or a text, None if it is none.

    Args:
        given: such as `20_000_000`, `"20M"` or `"25%"`.
        units: what a unit stands for, by its name in small letters; `""` where there is none.
        shares: whether a share of the teacher, from 0 to 100 %, can be meant.
    """
    if isinstance(given, str):
        written = _WRITTEN.fullmatch(given.strip())
        if written is None:
            return None
        number, unit = float(written[1].replace("_", "").replace(",", "")), written[2].lower()
        if unit == "%":
            return Amount(number / 100, is_share=True) if shares and 0 < number <= 100 else None
        return Amount(number * units[unit]) if unit in units and number > 0 else None
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not isfinite(given) or given <= 0:
        return None
    return Amount(float(given))
