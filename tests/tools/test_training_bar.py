"""The bar of a training: loss, tokens per second, and the steps of this run alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from wid_hf.tools import training_bar
from wid_hf.tools.training_bar import TrainingBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time that the bar sees; `clock.now` sets it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training_bar.time, "monotonic", lambda: clock.now)
    return clock


def begun(**state: Any) -> tuple[TrainingBar, TrainerState]:
    bar, trained = TrainingBar(), TrainerState(max_steps=10, is_world_process_zero=True, **state)
    bar.on_train_begin(None, trained, TrainerControl())  # type: ignore[arg-type]
    return bar, trained


def logged(bar: TrainingBar, state: TrainerState, **logs: float) -> str:
    bar.on_log(None, state, TrainerControl(), logs=logs)  # type: ignore[arg-type]
    return bar.training_bar.postfix


def test_a_bar_tells_the_loss_and_the_tokens_of_each_second(clock: Any) -> None:
    bar, state = begun()
    clock.now, state.num_input_tokens_seen = 2.0, 3000
    assert logged(bar, state, loss=1.23456) == "loss=1.235, tokens/s=1,500"
    clock.now, state.num_input_tokens_seen = 3.0, 5000
    assert logged(bar, state, loss=1.0) == "loss=1.000, tokens/s=2,000"


def test_a_training_that_counts_no_tokens_tells_the_loss_alone(clock: Any) -> None:
    bar, state = begun()
    clock.now = 2.0
    assert logged(bar, state, loss=1.0) == "loss=1.000"


def test_other_figures_are_not_told(clock: Any) -> None:
    bar, state = begun()
    assert logged(bar, state, grad_norm=1.0) is None


def test_a_resumed_training_counts_its_own_steps_and_tokens(clock: Any) -> None:
    bar, state = begun(global_step=8, num_input_tokens_seen=8000)
    assert (bar.training_bar.n, bar.training_bar.format_dict["initial"]) == (8, 8)
    state.global_step += 1
    bar.on_step_end(None, state, TrainerControl())  # type: ignore[arg-type]
    clock.now, state.num_input_tokens_seen = 1.0, 9000
    assert bar.training_bar.n == 9
    assert logged(bar, state, loss=1.0) == "loss=1.000, tokens/s=1,000"
