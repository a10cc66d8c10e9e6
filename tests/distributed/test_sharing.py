"""Two processes that divide weights and optimizer train as one does with both batches, and go on where they stopped."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from table import ALONE, CONFIGS, TWO, Run, run

pytestmark = pytest.mark.slow

MODES = ("fsdp2", "fsdp2_full", "zero1", "zero2", "zero3")


def skip_without_deepspeed(mode: str) -> None:
    if mode.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")


def assert_same(one: Run, other: Run) -> None:
    """Compare every loss and every merged weight."""
    assert not one.error and not other.error, one.error or other.error
    assert len(one.losses) == len(other.losses) == 4
    assert max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)) < 2e-6
    assert one.weights.keys() == other.weights.keys()
    assert max(float((one.weights[n] - other.weights[n]).abs().max()) for n in one.weights) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_divided_weights_train_merge_and_resume_like_one_process(tmp_path: Path, mode: str) -> None:
    skip_without_deepspeed(mode)
    given = ["--steps", "4", "--config", json.dumps(CONFIGS["calibrated"])]
    one = run(ALONE, tmp_path / "one", *given, "--batch", "8")
    both = [*given, "--batch", "4", "--mode", mode, "--save-steps", "2"]
    whole = run(TWO, tmp_path / "two", *both)
    assert_same(one, whole)
    divided = mode in ("fsdp2", "fsdp2_full", "zero3")  # else only gradients and the optimizer's state are
    shares = json.loads((tmp_path / "two" / "rank-0.json").read_text())["shares"]
    assert all(0.4 < share < 0.6 if divided else share == 1 for share in shares), shares
    for name in ("checkpoint-4", "student"):
        shutil.rmtree(tmp_path / "two" / name)
    assert_same(whole, run(TWO, tmp_path / "two", *both, "--resume"))


@pytest.mark.parametrize("mode", ["fsdp2", "zero1"])
def test_a_schedule_that_shrinks_divided_weights_is_refused_by_name(tmp_path: Path, mode: str) -> None:
    skip_without_deepspeed(mode)
    given = ["--steps", "6", "--config", json.dumps(CONFIGS["progressive"]), "--mode", mode, "--batch", "4"]
    error = run(TWO, tmp_path / "two", *given).error
    assert "A progressive schedule" in error and {"fsdp2": "FSDP2", "zero1": "ZeRO-1"}[mode] in error


@pytest.mark.parametrize("mode", ["fsdp2", "zero2"])
def test_a_frozen_teacher_is_distilled_where_the_student_is_divided(tmp_path: Path, mode: str) -> None:
    skip_without_deepspeed(mode)
    given = ["--steps", "4", "--config", json.dumps(CONFIGS["narrow"]), "--distil"]
    one = run(ALONE, tmp_path / "one", *given, "--batch", "8")
    assert_same(one, run(TWO, tmp_path / "two", *given, "--batch", "4", "--mode", mode))
