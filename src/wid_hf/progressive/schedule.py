"""How much progressive training drops at which step: pure arithmetic.

Takes a `WidSchedule` (what a user sets) and the number of steps, gives a `Timeline` (what happens at which step).
`WidConfig` holds the first, `Progress` uses the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal, get_args

from ..errors import ConfigError
from ..saved_dataclass import from_saved

Penalty = Literal["decoupled", "adam_moment"]
Score = Literal["norm", "importance"]
Kind = Literal["stream", "head", "width"]  # "head": whole heads, "width": inside heads, "stream": all else

PAPER_STEPS = 400_000


@dataclass(frozen=True)
class WidSchedule:
    """The paper's progressive training: full width first, then more and more rows of compactors go to zero.

    Numbers of steps below 1 are shares of all steps. The defaults are the proportions of the reference code, whose
    masks are final after 8,000 of 400,000 steps (Wu et al. 2024, arXiv 2305.09098). Indices are dropped by importance,
    which was better than the paper's norms wherever both were measured (docs/starts.md, Schedules).

    Args:
        mask_interval: steps between two choices of what is dropped.
        mask_increments: how many choices there are; the last one drops all that must go. Widths inside heads need
            half as many.
        increments_per_head: choices for each head that is dropped; fewer if there are too many heads.
        penalty: how dropped rows and columns go to zero. `"decoupled"` multiplies them after the optimizer's step,
            which works with every optimizer; `"adam_moment"` repeats the reference code on Adam's moments.
        penalty_strength: for `"decoupled"` the power p in `(1 - s / decay_to_zero_steps) ** p`, the factor of a row s
            steps after it was dropped (1 by default); for `"adam_moment"` the reference's lambda (20 by default).
        selection: the score of an index, the lowest are dropped: first-order `"importance"`, the squared sum of
            gradient x value, accumulated over steps, or the `"norm"` of its compactors, as in the paper.
        decay_to_zero_steps: steps from being dropped to exactly zero.
        total_steps: of the whole training; `WidCallback` fills it in from the trainer.

    Raises:
        ConfigError: a number that is not positive, or an unknown value.
    """

    mask_interval: float = 0.02 / 16
    mask_increments: int = 16
    increments_per_head: int = 2
    penalty: Penalty = "decoupled"
    penalty_strength: float | None = None
    selection: Score = "importance"
    decay_to_zero_steps: float = 0.02
    total_steps: int | None = None

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[Any], str | None]] = {
            "penalty": partial(_not_a_word, words=get_args(Penalty)),
            "selection": partial(_not_a_word, words=get_args(Score)),
            "mask_interval": _not_steps,
            "decay_to_zero_steps": _not_steps,
            "mask_increments": _not_a_count,
            "increments_per_head": _not_a_count,
            "total_steps": lambda value: None if value is None else _not_a_count(value),
            "penalty_strength": lambda value: None if value is None else _not_above_zero(value),
        }
        found = {name: why for name, check in checks.items() if (why := check(getattr(self, name)))}
        if found:
            problems = [f"{name}={getattr(self, name)!r} is {why}" for name, why in found.items()]
            raise ConfigError("WidSchedule: " + "; ".join(problems))

    @classmethod
    def paper(cls) -> WidSchedule:
        """Return the absolute values of the reference code: 500 steps x 16 choices, lambda 20.

        It does not say in how many steps rows become zero; here in as many as the choices take.
        """
        return cls(
            mask_interval=500, penalty="adam_moment", penalty_strength=20.0, selection="norm", decay_to_zero_steps=8_000
        )

    @classmethod
    def from_dict(cls, stated: dict[str, Any]) -> WidSchedule:
        """Return the schedule from which `dataclasses.asdict` made `stated`.

        Raises:
            ConfigError: an unknown name, or what the constructor refuses.
        """
        return from_saved(cls, stated)

    @property
    def strength(self) -> float:
        """`penalty_strength`, or its default for the penalty."""
        default = 20.0 if self.penalty == "adam_moment" else 1.0
        return default if self.penalty_strength is None else self.penalty_strength

    def timeline(self, total_steps: int | None = None) -> Timeline:
        """Return what happens at which step.

        Args:
            total_steps: of the whole training, if the schedule itself does not say.

        Raises:
            ConfigError: shares of steps without a total, or a schedule that does not end within it.
        """
        total = self.total_steps or total_steps
        if total is None and (self.mask_interval < 1 or self.decay_to_zero_steps < 1):
            raise ConfigError(
                "The schedule is given in shares of all steps, but their number is not known. Use WidTrainer or "
                "WidCallback, call model.wid_begin(total_steps=...), or set WidSchedule(total_steps=...)."
            )
        window = self.mask_interval * self.mask_increments * (1 if self.mask_interval >= 1 else total or 0)
        decay = self.decay_to_zero_steps * (1 if self.decay_to_zero_steps >= 1 else total or 0)
        made = Timeline(max(1, round(window)), self.mask_increments, max(1, round(decay)), self.increments_per_head)
        if total is not None and made.shrink_step > total:
            raise ConfigError(
                f"The schedule ends at step {made.shrink_step} ({made.window} steps of choices, then "
                f"{made.decay} until rows are zero), but training has only {total}. Train longer, or lower "
                "mask_interval and decay_to_zero_steps."
            )
        return made


@dataclass(frozen=True)
class Timeline:
    """What happens at which step; steps are counted from 1, as a trainer's `global_step` after a step.

    Attributes:
        window: steps until the last choice.
        increments: how many choices there are; if there are fewer steps, several happen at one.
        decay: steps from being dropped to zero.
        increments_per_head: choices for each head that is dropped.
    """

    window: int
    increments: int
    decay: int
    increments_per_head: int = 2

    @property
    def shrink_step(self) -> int:
        """The step after which every dropped row is zero."""
        return self.window + self.decay

    def increment(self, step: int) -> int:
        """Return how many choices are made up to `step`."""
        return min(self.increments, step * self.increments // self.window)

    def kept(self, full: int, final: int, increment: int, kind: Kind = "stream") -> int:
        """Return how many indices are kept after some choices.

        Args:
            full: the teacher's number.
            final: the student's.
            increment: how many choices were made.
            kind: of what: `"head"` for whole heads, `"width"` for the inside of heads.
        """
        gone = full - final
        if not gone:
            return full
        spread = self.increments
        if kind == "width":
            spread = max(1, self.increments // 2)
        elif kind == "head":
            spread = min(self.increments, self.increments_per_head * gone)
        return full - min(gone, gone * increment // spread)

    def remaining(self, age: int, strength: float = 1.0) -> float:
        """Return the factor of a row `age` steps after it was dropped, `(1 - age / decay) ** strength`."""
        return max(0.0, 1.0 - age / self.decay) ** strength if age < self.decay else 0.0


def _not_a_word(value: object, words: tuple[str, ...]) -> str | None:
    return None if value in words else f"not one of {', '.join(map(repr, words))}"


def _not_steps(value: Any) -> str | None:
    if _is_number(value) and (0 < value < 1 or (value >= 1 and value == int(value))):
        return None
    return "neither a number of steps nor a share of them between 0 and 1"


def _not_a_count(value: object) -> str | None:
    return None if type(value) is int and value >= 1 else "not a positive integer"


def _not_above_zero(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "not a number above 0"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
