"""Latency is a low quantile of interleaved rounds, by a clock that tests wind themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM

from wid_hf import ConfigError, WidError
from wid_hf.budget.latency import MOST_ROUNDS, ROUNDS, WARM_UP, Stopwatch, timings
from wid_hf.budget.memory import peak_memory
from wid_hf.budget.stock_models import sized_inputs, stock_model


class Clock:
    """Goes on only when something is done, by milliseconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, ms: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += next(ms) / 1e3

        return call


def repeated(*ms: float) -> Iterator[float]:
    while True:
        yield from ms


def test_other_work_of_the_machine_does_not_count() -> None:
    clock = Clock()
    quiet, busy = timings([clock.work("a", repeated(5.0)), clock.work("b", repeated(9.0, 4.0, 30.0))], clock=clock)
    assert (quiet.ms, quiet.spread) == (pytest.approx(5.0), pytest.approx(0.0))
    assert (busy.ms, busy.typical) == (pytest.approx(4.0), pytest.approx(9.0))


def test_rounds_are_interleaved_after_a_warm_up() -> None:
    clock = Clock()
    timings([clock.work("a", repeated(50.0)), clock.work("b", repeated(50.0))], clock=clock)
    assert clock.log[: 2 * WARM_UP] == ["a"] * WARM_UP + ["b"] * WARM_UP
    assert clock.log[2 * WARM_UP :] == ["a", "b"] * ROUNDS


def test_short_forwards_are_timed_for_a_quarter_of_a_second() -> None:
    clock = Clock()
    (found,) = timings([clock.work("a", iter([9.0] * 40 + [2.0] * 400))], clock=clock)  # a busy moment at first
    assert found.ms == pytest.approx(2.0)


def test_a_machine_that_becomes_slower_and_slower_is_refused_with_the_spread() -> None:
    clock = Clock()
    with pytest.raises(WidError, match=r"too busy to measure latency: after 384 forwards .* more in one half"):
        timings([clock.work("a", iter([1.05**n for n in range(1000)]))], clock=clock)
    assert len(clock.log) == WARM_UP + MOST_ROUNDS


def test_very_short_forwards_have_seconds_to_settle() -> None:
    clock = Clock()
    (found,) = timings([clock.work("a", iter([0.5] * 190 + [0.7] * 250 + [0.5, 0.7] * 3000))], clock=clock)
    assert found.ms == pytest.approx(0.5)


def test_a_stopwatch_times_a_student_with_the_batch_and_length_asked_for(tiny_bert: BertForMaskedLM) -> None:
    ticks = iter(range(1000))
    found = Stopwatch(tiny_bert, batch=2, length=9, clock=lambda: next(ticks) / 1e3)(tiny_bert.config)
    assert (found.ms, found.spread) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))


def test_nothing_but_forwards_is_timed(tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    of_class = type(tiny_bert).forward

    def logged(self: BertForMaskedLM, **inputs: object) -> object:
        log.append("forward")
        assert not torch.is_grad_enabled() and not self.training
        return of_class(self, **inputs)

    def clock() -> float:
        log.append("clock")
        return len(log) / 10

    monkeypatch.setattr(type(tiny_bert), "forward", logged)
    monkeypatch.setattr(type(tiny_bert), "train", lambda self, mode=True: log.append("mode") or self)
    monkeypatch.setattr(type(tiny_bert), "eval", lambda self: nn.Module.train(self, False))
    Stopwatch(tiny_bert, batch=2, length=9, clock=clock)(tiny_bert.config)
    timed = log[log.index("clock") + 1 :]
    assert timed[:3] == ["clock", "forward", "clock"]
    assert "mode" not in timed


def test_inputs_are_as_large_as_asked_for(tiny_bert: BertForMaskedLM) -> None:
    assert sized_inputs(tiny_bert, 5, 20)["input_ids"].shape == (5, 20)
    with pytest.raises(ConfigError, match="does not run on batch=1, length=33"):
        sized_inputs(tiny_bert, 1, 33)  # it has 32 positions


def test_a_stock_model_has_written_weights_of_its_own(tiny_bert: BertForMaskedLM) -> None:
    before = {name: weight.clone() for name, weight in tiny_bert.named_parameters()}
    model = stock_model(tiny_bert, tiny_bert.config)
    assert all(weight.std() > 0.01 for weight in model.parameters() if weight.numel() > 9)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_bert.named_parameters())


def test_peak_memory_is_weights_and_what_is_alive_at_one_time() -> None:
    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = x * 2  # one old and one new tensor at a time
            return x

    assert peak_memory(Doubled(), {"x": torch.ones(500)}) == 4 * (1000 + 500 + 2 * 500)
