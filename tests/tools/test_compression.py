"""A run in memory: what it will write, and what decides what comes out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from toys import save_teacher, texts
from transformers import BertForMaskedLM, BertForSequenceClassification

from wid_hf import WidConfig
from wid_hf.rows.digest import digest
from wid_hf.tools.compression import Compression, training_arguments
from wid_hf.tools.recipe import CompressSettings
from wid_hf.tools.teachers import Teacher

HALF = WidConfig(hidden_size=12, intermediate_size=24, init="identity")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_teacher(tmp_path_factory.mktemp("teacher"), BertForMaskedLM))


def job(saved: str, **settings: Any) -> Compression:
    rows = Dataset.from_dict({"text": texts(40)})
    return Compression(Teacher(saved), HALF, CompressSettings(**settings), train=rows)


def test_room_is_needed_for_the_student_and_for_weights_that_train_in_start_and_checkpoints(saved: str) -> None:
    student = job(saved, steps=0).bytes_to_write
    model = BertForMaskedLM.from_pretrained(saved)
    teacher = sum(p.numel() * p.element_size() for p in model.parameters())
    assert 0 < student < teacher
    frozen, trained = (job(saved, steps=100, teacher_learning_rate=rate).bytes_to_write for rate in (0, 1e-3))
    assert frozen > student and trained == frozen + 7 * teacher  # the start, and two checkpoints with AdamW's moments
    assert job(saved, steps=100, training={"save_strategy": "no"}).bytes_to_write == student
    assert job(saved, steps=10).bytes_to_write == student  # it ends before its first checkpoint


@pytest.mark.parametrize(("steps", "every"), [(1, 10), (300, 30), (5000, 500), (100_000, 500)])
def test_checkpoints_are_a_share_of_the_steps_apart(steps: int, every: int) -> None:
    arguments = training_arguments(CompressSettings(steps=steps), Path("work"))
    assert arguments["save_steps"] == every and arguments["output_dir"] == "work"
    given = replace(CompressSettings(steps=steps), training={"save_steps": "7", "bf16": "true"})
    assert training_arguments(given, Path("work"))["save_steps"] == 7
    assert training_arguments(given, Path("work"))["bf16"] is True


def test_what_decides_a_run_holds_weights_sizes_settings_and_numbers_of_rows(saved: str) -> None:
    one, same, other = (job(saved, steps=2, batch_size=size) for size in (4, 4, 8))
    for each in (one, same, other):
        each.read()
    assert one.decides == same.decides != other.decides
    assert one.decides["sizes"] == {"hidden_size": 12, "intermediate_size": 24}
    assert one.decides["rows"] == {"rows from Python": 40}
    assert one.decides["the content of rows from Python"] == digest(one.data.sources["rows from Python"].rows)
    assert one.decides["settings"]["batch_size"] == 4 and "hub" not in one.decides["settings"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "Method: WID, merged before training; distillation: hidden; learning rates: student 0.0001."),
        ({"distillation": ()}, "Method: WID, merged before training; learning rates: student 0.0001."),
        ({"steps": 0}, "Method: WID; no training."),
    ],
)
def test_how_a_classifier_trains_is_told_and_recorded(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    teacher = Teacher(str(save_teacher(tmp_path / "teacher", BertForSequenceClassification)))
    made = Compression(teacher, HALF, CompressSettings(**settings), train=Dataset.from_dict({"text": texts(40)}))
    assert made.words().endswith(f"(task=sequence-classification, found from its class). {told}")
    assert made.report.settings["compared"] == (("hidden",) if "hidden" in told else ())
