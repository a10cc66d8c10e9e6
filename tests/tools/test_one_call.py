"""`wid_hf.compress`: the command as one call, with models and rows that are in memory already."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toys import save_teacher, texts, word_tokenizer, write_texts
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    TrainingArguments,
)

import wid_hf
from wid_hf import ConfigError, WidConfig, WidTrainingArguments
from wid_hf.tools.compress import CompressSettings
from wid_hf.tools.compress import compress as compress_by_name

HALF = WidConfig(hidden_size=12, intermediate_size=24, init="identity", selection="variance")
QUICK: dict[str, Any] = {"max_length": 12, "validation_texts": 8}


def args(folder: Path, **given: Any) -> TrainingArguments:
    return TrainingArguments(str(folder / "out"), max_steps=3, per_device_train_batch_size=8, seed=1, **given)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the call, with temporary files in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_call_gives_the_student_of_the_command_and_leaves_nothing_on_disk(
    tmp_path: Path, masked_teacher: Path, here: Path
) -> None:
    train = write_texts(tmp_path / "t.txt")
    student, report = wid_hf.compress(str(masked_teacher), str(train), HALF, args=args(here), **QUICK)
    assert list(here.iterdir()) == []
    settings = CompressSettings(steps=3, batch_size=8, seed=1, **QUICK)
    same = compress_by_name(str(masked_teacher), str(train), tmp_path / "s", HALF, settings)
    assert type(student) is BertForMaskedLM and not student.training
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "s").state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in student.state_dict().items())
    assert report.scores == same.scores and report.losses == same.losses
    assert set(report.scores) == {"teacher", "start", "student"}


def test_a_model_and_rows_in_memory_are_taken_and_the_model_stays_as_it_is(tmp_path: Path, here: Path) -> None:
    saved = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    model = BertForMaskedLM.from_pretrained(saved).train()
    model.bert.embeddings.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    rows = Dataset.from_dict({"sentence": texts(80)})
    held_out = Dataset.from_dict({"sentence": texts(8, seed=1)})
    student, report = wid_hf.compress(
        model,
        rows,
        HALF,
        args=args(here),
        processing_class=word_tokenizer(),
        validation=held_out,
        column="sentence",
        train_weights="compactors",
        **QUICK,
    )
    assert student.config.hidden_size == 12 and report.steps == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # its teacher trains
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen and model.training
    assert report.settings["learning_rates"]["teacher"] > 0
    assert (report.teacher, report.settings["train"]) == (str(saved), "rows from Python")


def test_a_classifier_without_a_folder_is_written_with_the_tokenizer_that_was_given(tmp_path: Path, here: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(save_teacher(tmp_path / "t", BertForSequenceClassification))
    model.config._name_or_path = ""
    model.name_or_path = ""
    rows = Dataset.from_dict({"text": texts(80)})
    given = {"processing_class": word_tokenizer(), "args": args(here), "task": "sequence-classification"}
    student, report = wid_hf.compress(model, rows, HALF, output=here / "student", **given, **QUICK)
    assert report.teacher == "BertForSequenceClassification" and report.objective == "sequence-classification"
    assert {path.name for path in here.iterdir()} == {"student"}
    assert AutoTokenizer.from_pretrained(here / "student")("one two")["input_ids"] == [2, 5, 6, 3]
    written = json.loads((here / "student" / "wid_report.json").read_text())
    assert written["fingerprints"] == report.fingerprints and written["run"] is None
    loaded = BertForSequenceClassification.from_pretrained(here / "student").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in student.state_dict().items())


def test_arguments_go_before_defaults_and_names_before_arguments(masked_teacher: Path, tmp_path: Path) -> None:
    given = WidTrainingArguments(
        str(tmp_path / "out"), max_steps=2, compactor_learning_rate=1e-5, lr_scheduler_type="constant", use_cpu=True
    )
    rows = Dataset.from_dict({"text": texts(40)})
    _, report = wid_hf.compress(str(masked_teacher), rows, HALF, args=given, steps=1, batch_size=4, **QUICK)
    assert report.steps == 1 and report.settings["learning_rates"]["compactors"] == 1e-5
    assert report.settings["training"] == {"lr_scheduler_type": "constant", "use_cpu": True}
    assert report.settings["batch_size"] == 4 and report.seed == 42


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 3}, "compress has no argument step; the nearest is steps"),
        ({"args": TrainingArguments("out", num_train_epochs=1)}, "Pass steps= instead"),
        (
            {"args": TrainingArguments("out", learning_rate=1e-4), "train_weights": "compactors"},
            "learning_rate=0.0001 is for train_weights=merged",
        ),
    ],
)
def test_what_compress_decides_otherwise_is_refused(masked_teacher: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wid_hf.compress(str(masked_teacher), Dataset.from_dict({"text": texts(4)}), HALF, **given)
