"""A schedule's sizes and steps: the paper's proportions for any number of steps, the paper's numbers as a preset."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wid_hf import ConfigError, WidConfig, WidSchedule
from wid_hf.progressive.schedule import Timeline


def test_the_default_is_final_after_two_percent_of_any_training() -> None:
    for steps in (400_000, 100_000, 5_000, 600):
        timeline = WidSchedule().timeline(steps)
        assert timeline.window == pytest.approx(0.02 * steps, abs=0.5)
        assert timeline.increment(timeline.window) == 16
        assert timeline.increment(timeline.window - 1) < 16


def test_the_default_at_the_papers_length_makes_the_papers_choices() -> None:
    default, paper = WidSchedule().timeline(400_000), WidSchedule.paper().timeline(400_000)
    assert [default.increment(step) for step in range(0, 9_000, 100)] == [
        paper.increment(step) for step in range(0, 9_000, 100)
    ]
    assert default.increment(499) == 0 and default.increment(500) == 1 and default.increment(8_000) == 16


def test_the_paper_preset_has_the_reference_numbers() -> None:
    paper = WidSchedule.paper()
    assert (paper.mask_interval, paper.mask_increments, paper.penalty, paper.strength) == (500, 16, "adam_moment", 20.0)


def test_streams_take_sixteen_choices_widths_eight_and_heads_two_each() -> None:
    timeline = Timeline(window=8_000, increments=16, decay=100)
    assert [timeline.kept(768, 512, j) for j in (0, 1, 8, 15, 16)] == [768, 752, 640, 528, 512]
    assert [timeline.kept(64, 16, j, "width") for j in (0, 1, 7, 8, 16)] == [64, 58, 22, 16, 16]
    assert [timeline.kept(12, 8, j, "head") for j in range(10)] == [12, 12, 11, 11, 10, 10, 9, 9, 8, 8]


def test_many_heads_are_gone_by_the_last_choice() -> None:
    timeline = Timeline(window=8_000, increments=16, decay=100)
    assert [timeline.kept(32, 8, j, "head") for j in (0, 8, 16)] == [32, 20, 8]


@given(
    st.integers(1, 500),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["stream", "head", "width"]),
)
def test_sizes_only_shrink_and_end_at_the_students(
    window: int, increments: int, per_head: int, a: int, b: int, kind: Any
) -> None:
    timeline = Timeline(window, increments, decay=3, increments_per_head=per_head)
    full, final = max(a, b), min(a, b)
    kept = [timeline.kept(full, final, timeline.increment(step), kind) for step in range(window + 1)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == full or window == 0
    assert kept[-1] == final


@given(st.integers(1, 200), st.floats(0.2, 5))
def test_what_is_left_of_a_row_falls_to_exactly_zero(decay: int, strength: float) -> None:
    timeline = Timeline(window=1, increments=1, decay=decay)
    left = [timeline.remaining(age, strength) for age in range(decay + 2)]
    assert left[0] == 1.0
    assert left == sorted(left, reverse=True)
    assert left[decay] == left[decay + 1] == 0.0
    assert all(value > 0 for value in left[:decay])


def test_shares_of_an_unknown_number_of_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shares of all steps.*wid_begin\(total_steps"):
        WidSchedule().timeline()
    assert WidSchedule(total_steps=1000).timeline().window == 20


def test_a_schedule_that_does_not_end_in_time_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"ends at step 16000 .* only 9000"):
        WidSchedule.paper().timeline(9_000)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask_interval": 0}, "mask_interval=0"),
        ({"mask_interval": 2.5}, "mask_interval=2.5"),
        ({"decay_to_zero_steps": float("nan")}, "decay_to_zero_steps=nan"),
        ({"mask_increments": 1.5}, "mask_increments=1.5 is not a positive integer"),
        ({"penalty": "l2"}, "penalty='l2' is not one of 'decoupled', 'adam_moment'"),
        ({"selection": "random"}, "selection='random'"),
        ({"penalty_strength": -1}, "penalty_strength=-1"),
        ({"total_steps": 0}, "total_steps=0"),
    ],
)
def test_bad_schedules_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WidSchedule(**given)


def test_a_schedule_survives_the_config_file(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, schedule=WidSchedule(mask_interval=7, selection="importance"))
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["schedule"]["mask_interval"] == 7
    assert WidConfig.from_pretrained(str(tmp_path)).schedule == config.schedule


def test_progressive_is_short_for_the_default_schedule_and_starts_at_the_identity() -> None:
    config = WidConfig(hidden_size=12, schedule="progressive")
    assert config.schedule == WidSchedule()
    assert (config.init, config.selection) == ("identity", "first")
    assert asdict(config)["schedule"]["mask_increments"] == 16


def test_a_progressive_schedule_takes_no_other_start() -> None:
    with pytest.raises(ConfigError, match="leave init and selection out, got init='calibrated'"):
        WidConfig(hidden_size=12, schedule="progressive", init="calibrated")
    with pytest.raises(ConfigError, match="schedule='fast' is not 'narrow', 'progressive' or a WidSchedule"):
        WidConfig(hidden_size=12, schedule="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="WidSchedule has no interval"):
        WidConfig(hidden_size=12, schedule={"interval": 3})  # type: ignore[arg-type]
