"""`Target`: how small, how light or how fast a student must be.

Takes what a user asks for; checks what can be checked without a model. `costs` compares shapes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..hub.model_size import ModelSize
from .amounts import BYTES, COUNTS, MILLISECONDS, Amount, amount

NAMES = ("params", "encoder_params", "bytes", "latency_ms", "memory")
_UNITS: dict[str, Mapping[str, float]] = {
    "params": COUNTS, "encoder_params": COUNTS, "bytes": BYTES, "latency_ms": MILLISECONDS, "memory": BYTES,
}  # fmt: skip
_EXAMPLES = {
    "params": '20_000_000, "20M" or "25%"',
    "encoder_params": '20_000_000, "20M" or "25%"',
    "bytes": '20_000_000, "20MB" or "25%"',
    "latency_ms": '5 or "5ms"',
    "memory": '200_000_000, "200MB" or "25%"',
}
_WORDS = {
    "params": "{:,.0f} parameters",
    "encoder_params": "{:,.0f} parameters outside embeddings and head",
    "bytes": "{:,.0f} bytes on disk",
    "latency_ms": "{:.3g} ms a forward",
    "memory": "{:,.0f} bytes at the peak of a forward",
}


@dataclass(frozen=True)
class Target:
    """The most that a student may need. Several at once must all hold.

    A share such as `"25%"` is of what the teacher needs. Latency and memory are those of one forward without gradients
    of a stock model with the student's sizes, on the teacher's device and in its dtype.

    Args:
        params: parameters in all.
        encoder_params: parameters outside embeddings and head, as `hub.model_size` counts them.
        bytes: of weights on disk, `"20MB"`; `MB` are millions, `MiB` powers of two.
        latency_ms: milliseconds, or `"5ms"`; no share.
        memory: bytes at the peak of a forward: weights, and all activations that are alive at one time. Counted, so
            that it is the same on every device; what an allocator or a kernel takes for itself is not in it.
        batch: rows of that forward.
        length: tokens of each row; images and sounds are as long as the teacher's config says.

    Raises:
        ConfigError: lists every target that is no amount; or there is none.
    """

    params: int | str | None = None
    encoder_params: int | str | None = None
    bytes: int | str | None = None
    latency_ms: float | str | None = None
    memory: int | str | None = None
    batch: int = 1
    length: int = 128

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)!r} is no amount above 0. Legal: {_EXAMPLES[name]}"
            for name in NAMES
            if getattr(self, name) is not None and self._amount(name) is None
        ]
        for name in ("batch", "length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                problems.append(f"{name}={value!r} is not a positive integer")
        if not problems and not self.amounts:
            problems.append(f"no target is given; give one of {', '.join(f'{name}=' for name in NAMES)}")
        if problems:
            raise ConfigError(f"Target: {'; '.join(problems)}.")

    @property
    def amounts(self) -> dict[str, Amount]:
        """Each amount that is given, by name."""
        found = {name: self._amount(name) for name in NAMES if getattr(self, name) is not None}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def given(self) -> dict[str, Any]:
        """Every amount as it was given, by name, and the forward where a target is about one."""
        forward = {"latency_ms", "memory"} & {*self.amounts}
        names = (*self.amounts, *(("batch", "length") if forward else ()))
        return {name: getattr(self, name) for name in names}

    def counted(self, teacher: ModelSize) -> Target:
        """Return the same target with numbers in the place of shares of parameters and bytes.

        Args:
            teacher: the size of the model that shares are of.
        """
        whole = {"params": teacher.total, "encoder_params": teacher.encoder, "bytes": teacher.bytes}
        shares = {name: each for name, each in self.amounts.items() if each.is_share and name in whole}
        return replace(self, **{name: int(each.of(whole[name])) for name, each in shares.items()})

    def limits(self, teacher: Mapping[str, float]) -> dict[str, float]:
        """Return the most that a student may need, by name.

        Args:
            teacher: what the teacher needs, by name; of a share it must be there.

        Raises:
            ConfigError: the teacher needs no more than that. Targets cannot contradict each other: each is a most, and
                one that another implies (parameters of the encoder beside few in all) only never decides.
        """
        limits = {name: each.of(teacher.get(name, 0.0)) for name, each in self.amounts.items()}
        if all(name in teacher and teacher[name] <= most for name, most in limits.items()):
            has = " and ".join(in_words(name, teacher[name]) for name in limits)
            raise ConfigError(
                f"Target: the teacher itself has {has}: there is nothing to shrink. Give a smaller target."
            )
        return limits

    def _amount(self, name: str) -> Amount | None:
        return amount(getattr(self, name), _UNITS[name], shares=name != "latency_ms")


def in_words(name: str, number: float) -> str:
    """Return a number of what `name` is about, with its unit."""
    return _WORDS[name].format(number)
