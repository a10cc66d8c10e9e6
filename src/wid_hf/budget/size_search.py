"""`SizeSearch`: a target in the place of sizes, as `wid_hf.compress` takes it.

Takes a `Target` and the other fields of a `WidConfig`; gives that config once sizes were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import COUNT, SIZES, WidConfig
from ..errors import ConfigError
from .halving import SECONDS
from .targets import Target

SIZED = (*SIZES, COUNT, "layers", "overrides")  # fields of WidConfig that a search decides


@dataclass(frozen=True)
class SizeSearch:
    """A target in the place of sizes.

    Args:
        target: the most that the student may need.
        seconds: that the search may take; 0 takes the best guess without one.
        round_to: what sizes are multiples of; by default 8 on a CPU and 64 on other devices.
        others: fields of `WidConfig` that are no sizes, by name.

    Raises:
        ConfigError: sizes are given beside the target, or `seconds` is no number from 0.
    """

    target: Target
    seconds: float = SECONDS
    round_to: int | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if given := [name for name in SIZED if self.others.get(name) not in (None, {})]:
            raise ConfigError(
                f"Sizes ({', '.join(given)}) and a target are given. Give the sizes, or the target that they shall be "
                "found for."
            )
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)) or not self.seconds >= 0:
            raise ConfigError(f"seconds={self.seconds!r} is not a number from 0. 0 takes a guess without a search.")

    @property
    def asked(self) -> dict[str, Any]:
        """What sizes are found for, as plain values for JSON."""
        return {"target": self.target.given, "seconds": self.seconds, "round_to": self.round_to}

    def config(self, sizes: Mapping[str, Any]) -> WidConfig:
        """Return the request for sizes that were found."""
        return WidConfig(**sizes, **self.others)


def sizes_of(config: WidConfig) -> dict[str, Any]:
    """Return the fields of a request that are about sizes, by name."""
    return {name: value for name in SIZED if (value := getattr(config, name))}
