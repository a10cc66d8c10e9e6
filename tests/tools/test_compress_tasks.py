"""From rows of more than one text to a student's folder: spans, choices and targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from encoder_decoders import HALF_BART, HALF_T5, bart, t5
from task_rows import prompts, questions, sources
from toys import save_teacher, word_tokenizer
from training_runs import HALF
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    PreTrainedModel,
)

from wid_hf import TeacherError, WidConfig
from wid_hf.errors import DataError
from wid_hf.tools.compress import CompressSettings, compress

QUICK = CompressSettings(steps=3, batch_size=8, max_length=12, validation_texts=12)


def saved(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder / "teacher")
    word_tokenizer().save_pretrained(folder / "teacher")
    return folder / "teacher"


def spans(folder: Path) -> Path:
    return save_teacher(folder / "teacher", BertForQuestionAnswering)


def choices(folder: Path) -> Path:
    return save_teacher(folder / "teacher", BertForMultipleChoice)


CASES: dict[str, tuple[Callable[[Path], Path], Any, Any, WidConfig, set[str]]] = {
    "question-answering": (spans, AutoModelForQuestionAnswering, questions, HALF, {"f1", "exact_match"}),
    "multiple-choice": (choices, AutoModelForMultipleChoice, prompts, HALF, {"accuracy"}),
    "seq2seq of T5": (lambda folder: saved(folder, t5(0)), AutoModelForSeq2SeqLM, sources, HALF_T5, set()),
    "seq2seq of BART": (lambda folder: saved(folder, bart(0)), AutoModelForSeq2SeqLM, sources, HALF_BART, set()),
}


def written(path: Path, rows: dict[str, list[Any]]) -> str:
    Dataset.from_dict(rows).to_json(path)
    return str(path)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_student_is_made_from_rows_with_labels_or_without(name: str, labelled: bool, tmp_path: Path) -> None:
    make, auto, rows, half, figures = CASES[name]
    teacher = make(tmp_path)
    train = written(tmp_path / "train.jsonl", rows(48, labelled))
    report = compress(str(teacher), train, tmp_path / "student", half, QUICK)
    assert name.startswith(report.objective)
    assert [*report.scores] == ["teacher", "start", "student"]
    assert report.scores["teacher"]["agreement"] == 1 > report.scores["start"]["agreement"]
    assert (figures <= report.scores["student"].keys()) == (labelled or not figures)
    assert report.steps == 3
    student = auto.from_pretrained(tmp_path / "student")
    assert student.num_parameters() < auto.from_pretrained(teacher).num_parameters()
    if student.can_generate():
        made = student.generate(torch.tensor([[2, 5, 6, 3]]), max_new_tokens=3)
        assert made[0, 0] == student.config.decoder_start_token_id
    assert json.loads((tmp_path / "student" / "wid_report.json").read_text())["scores"]["student"]
    card = (tmp_path / "student" / "README.md").read_text()
    assert all(f"| {figure.replace('_', ' ')} |" in card for figure in report.scores["student"])


def test_given_targets_are_compared_along_even_without_a_loss_on_them(tmp_path: Path) -> None:
    teacher = saved(tmp_path, t5(0))
    rows = sources(48)
    train = written(tmp_path / "train.jsonl", rows)
    losses = {}
    for weight in (0.0, None):
        settings = CompressSettings(**{**QUICK.__dict__, "label_weight": weight})
        report = compress(str(teacher), train, tmp_path / f"student {weight}", HALF_T5, settings)
        losses[weight] = report.scores["teacher"]["loss"]
    assert losses[0.0] == losses[None]  # of the same targets


def test_rows_whose_answers_stand_elsewhere_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = questions(48)
    rows["answers"][0] = {"text": ["seven"], "answer_start": [999]}
    report = compress(str(spans(tmp_path)), written(tmp_path / "train.jsonl", rows), tmp_path / "student", HALF, QUICK)
    (record,) = report.rows.values()
    assert record["dropped"] == {"an answer does not stand at its answer_start, which counts characters": 1}
    assert record["columns"] == {"question": "question", "context": "context", "answers": "answers"}


def test_a_decoder_without_a_token_to_start_with_is_refused_before_rows_are_read(tmp_path: Path) -> None:
    model = t5(0)
    model.config.decoder_start_token_id = None
    empty = tmp_path / "train.jsonl"
    empty.touch()
    with pytest.raises(TeacherError, match="Set decoder_start_token_id and pad_token_id in its config"):
        compress(str(saved(tmp_path, model)), str(empty), tmp_path / "student", HALF_T5, QUICK)


def test_a_loss_on_labels_needs_labels_that_the_teacher_did_not_write_itself(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", sources(48, False))
    settings = CompressSettings(**{**QUICK.__dict__, "label_weight": 0.5})
    with pytest.raises(DataError, match=r"the training rows have none. Name their column with --column target=NAME"):
        compress(str(saved(tmp_path, t5(0))), train, tmp_path / "student", HALF_T5, settings)
