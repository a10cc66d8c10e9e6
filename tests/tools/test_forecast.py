"""A forecast has the scores of the start that compress makes, and counts what a step holds in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import write_texts

from wid_hf import WidConfig
from wid_hf.hub.model_size import model_size
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.forecast import forecast
from wid_hf.tools.teachers import Teacher

HALF = WidConfig(hidden_size=12, intermediate_size=24)


def test_scores_are_those_of_the_start_and_memory_holds_weights_gradients_and_moments(
    masked_teacher: Path, tmp_path: Path
) -> None:
    train = write_texts(tmp_path / "t.txt")
    settings = CompressSettings(steps=2, batch_size=8, max_length=12, validation_texts=8)
    teacher = Teacher(str(masked_teacher))
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    found = forecast(teacher, HALF, str(train), settings)
    report = compress(str(masked_teacher), str(train), tmp_path / "s", HALF, settings)
    assert found.scores["teacher"] == pytest.approx(report.scores["teacher"])
    losses = [each["start"]["masked_lm_loss"] for each in (found.scores, report.scores)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # calibrated on rows in another order
    assert found.held_out == 8
    assert all((tensor == before[name]).all() for name, tensor in teacher.model.state_dict().items())
    weights = report.sizes["teacher"].bytes + 4 * report.sizes["student"].bytes
    weights += found.memory.last_good
    assert weights < found.memory.total < weights + 2**22
    assert found.memory.teacher == pytest.approx(report.sizes["teacher"].bytes, rel=0.05)  # and its buffers
    assert found.memory.last_good == found.memory.gradients == report.sizes["student"].bytes
    assert 2 <= found.memory.optimizer / found.memory.gradients < 2.1  # with the step of each tensor
    assert model_size(teacher.model) == report.sizes["teacher"]
    assert 0 < found.step_seconds < 10


def test_a_larger_batch_needs_more_memory(masked_teacher: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "t.txt", 160)
    few, many = (
        forecast(
            Teacher(str(masked_teacher)),
            HALF,
            str(train),
            CompressSettings(batch_size=size, max_length=12, validation_texts=8),
        )
        for size in (4, 32)
    )
    assert few.memory.activations < many.memory.activations
    assert few.memory.total - few.memory.activations == many.memory.total - many.memory.activations
    assert many.to_dict()["memory"] == sum(many.to_dict()["memory_parts"].values())
    assert (
        f"Training with 32 rows of up to 12 tokens a step: {1000 * many.step_seconds / 60:,.1f} minutes" in many.words
    )
    assert many.to_dict()["seconds_per_1000_steps"] == 1000 * many.step_seconds
