"""What may be asked for: amounts with units, and refusals that say what is legal."""

from __future__ import annotations

import pytest

from wid_hf import ConfigError
from wid_hf.budget import Target
from wid_hf.budget.amounts import BYTES, COUNTS, amount

TEACHER = {"params": 1000.0, "encoder_params": 600.0, "bytes": 4000.0}


@pytest.mark.parametrize(
    ("given", "number"),
    [("20M", 20e6), ("1.5b", 1.5e9), ("300k", 3e5), ("20_000", 2e4), ("1,000", 1e3), (20_000_000, 2e7), (" 7 ", 7.0)],
)
def test_counts_are_read_as_people_write_them(given: object, number: float) -> None:
    found = amount(given, COUNTS)
    assert found is not None and not found.is_share
    assert found.of(1.0) == pytest.approx(number)


@pytest.mark.parametrize(
    ("given", "number"), [("20MB", 20e6), ("20 MiB", 20 * 2**20), ("1.5gb", 1.5e9), ("512b", 512.0), (100, 100.0)]
)
def test_bytes_know_millions_and_powers_of_two(given: object, number: float) -> None:
    found = amount(given, BYTES)
    assert found is not None
    assert found.of(1.0) == pytest.approx(number)


@pytest.mark.parametrize("given", [0, -5, "-5", "", "0%", "101%", "20X", True, float("inf"), float("nan"), "M", [5]])
def test_what_is_no_amount_above_zero_is_none(given: object) -> None:
    assert amount(given, COUNTS) is None


def test_a_share_is_of_what_the_teacher_needs() -> None:
    limits = Target(params="25%", encoder_params="10%", bytes="2kB").limits(TEACHER)
    assert limits == {"params": 250.0, "encoder_params": 60.0, "bytes": 2000.0}


def test_milliseconds_may_have_their_unit_but_are_no_share() -> None:
    assert Target(latency_ms="5ms").limits({"latency_ms": 9.0}) == {"latency_ms": 5.0}
    with pytest.raises(ConfigError, match=r"latency_ms='50%' is no amount above 0\. Legal: 5 or \"5ms\""):
        Target(latency_ms="50%")


def test_every_bad_amount_is_listed_with_what_is_legal() -> None:
    with pytest.raises(ConfigError) as refusal:
        Target(params="lots", bytes=-1, batch=0)
    assert "params='lots'" in str(refusal.value)
    assert '"25%"' in str(refusal.value)
    assert "bytes=-1" in str(refusal.value)
    assert "batch=0 is not a positive integer" in str(refusal.value)


def test_no_target_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no target is given; give one of params=, encoder_params=, bytes="):
        Target()


def test_a_target_that_the_teacher_fulfils_is_refused() -> None:
    with pytest.raises(ConfigError, match="the teacher itself has 1,000 parameters: there is nothing to shrink"):
        Target(params=1000).limits(TEACHER)
    assert Target(params=1000, bytes=1000).limits(TEACHER) == {"params": 1000.0, "bytes": 1000.0}


@pytest.mark.parametrize(
    "target",
    [
        Target(params="50%", encoder_params="90%"),  # 500 in all, and at most 540 of them in the encoder
        Target(params=400, encoder_params=500),
        Target(bytes="90%", memory="50%"),
    ],
)
def test_targets_of_a_part_and_of_its_whole_hold_together(target: Target) -> None:
    teacher = {**TEACHER, "memory": 5000.0}
    assert target.limits(teacher) == {name: each.of(teacher[name]) for name, each in target.amounts.items()}
