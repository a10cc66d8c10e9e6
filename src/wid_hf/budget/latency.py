"""How many milliseconds a forward takes on this device, whatever else the machine is doing.

Takes models or calls; gives a `Timing` of each. Called by `costs`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import WidError
from .stock_models import sized_inputs, stock_model

WARM_UP = 3  # forwards
ROUNDS = 12  # forwards of each, in turn
MOST_ROUNDS = 384
MOST_SECONDS = 3.0  # short forwards: a moment in which the machine slows down must not be half of all
LEAST_SECONDS = 0.25  # of all rounds: a dozen short forwards can all fall into one busy moment
LOW = 0.1  # quantile: other work only ever makes a forward slower, and the very least is a matter of luck
NOISE = 0.15  # by which two halves of the rounds may differ


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a forward.

    Attributes:
        ms: a low quantile of all rounds: what the device needs when it is left alone.
        spread: by what share the same quantile of two halves of the rounds differs.
        typical: the median, what a user of a machine as busy as now sees.
    """

    ms: float
    spread: float
    typical: float


Timer = Callable[[PretrainedConfig], Timing]
"""Gives the timing of a student with this config."""


def timings(
    calls: Sequence[Callable[[], object]], *, noise: float = NOISE, clock: Callable[[], float] = time.perf_counter
) -> list[Timing]:
    """Time each call in interleaved rounds, so that a slow minute falls on all of them; more rounds where they differ.

    Args:
        calls: what to time.
        noise: by which share the two halves of the rounds of a call may differ.
        clock: gives seconds.

    Raises:
        WidError: they still differ by more after the most rounds; tells the spread.
    """
    for call in calls:
        for _ in range(WARM_UP):
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    start = clock()
    while True:
        # As many again each time, up to the most.
        _run(calls, max(ROUNDS, min(len(seconds[0]), MOST_ROUNDS)), seconds, clock)
        if clock() - start < LEAST_SECONDS and len(seconds[0]) < MOST_ROUNDS:
            continue
        found = [_timing(each) for each in seconds]
        worst = max(found, key=lambda timing: timing.spread)
        if worst.spread <= noise:
            return found
        if len(seconds[0]) >= MOST_ROUNDS and clock() - start >= MOST_SECONDS:
            raise WidError(
                f"This machine is too busy to measure latency: after {len(seconds[0])} forwards the time of one is "
                f"{worst.ms:.3g} ms, and {worst.spread:.0%} more in one half of them than in the other (typically "
                f"{worst.typical:.3g} ms). End other work and try again, or give params= in place of latency_ms=."
            )


def _run(
    calls: Sequence[Callable[[], object]], rounds: int, seconds: list[list[float]], clock: Callable[[], float]
) -> None:
    """Add the seconds of each call in some rounds."""
    for _ in range(rounds):
        for at, call in enumerate(calls):
            began = clock()
            call()
            seconds[at].append(clock() - began)


class Stopwatch:
    """Times students of one teacher at a batch and a length, by stock models with random weights.

    Args:
        teacher: gives class, device and dtype.
        batch: rows of a forward.
        length: tokens of a row.
        clock: gives seconds.
    """

    def __init__(
        self, teacher: PreTrainedModel, batch: int, length: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._teacher, self._batch, self._length, self._clock = teacher, batch, length, clock

    def __call__(self, config: PretrainedConfig) -> Timing:
        """Return the timing of a student with this config.

        Raises:
            ConfigError: it does not run on inputs of this size.
            WidError: the machine is too noisy.
        """
        model = stock_model(self._teacher, config)
        inputs = sized_inputs(model, self._batch, self._length)

        def call() -> None:
            model(**inputs)
            if model.device.type != "cpu":
                torch.accelerator.synchronize(model.device)

        with torch.no_grad():  # once: what `forward` does around a call takes longer than a small student
            return timings([call], clock=self._clock)[0]


def _timing(seconds: Sequence[float]) -> Timing:
    low = partial(_quantile, share=LOW)
    halves = low(seconds[: len(seconds) // 2]), low(seconds[len(seconds) // 2 :])
    return Timing(1e3 * low(seconds), max(halves) / min(halves) - 1, 1e3 * median(seconds))


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]
