"""Models as they are on rows: figures on labels, nearness to a teacher, and what cannot be scored or compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from encoder_decoders import HALF_T5, t5
from media import picture, processor_of, teacher_of
from sentence_folders import write_modules
from task_rows import questions, sources
from toys import SPECIAL, WORDS, save_teacher, texts, word_tokenizer
from training_runs import HALF
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner
from wid_models import identity, turned

from wid_hf import WidConfig, find_task
from wid_hf.errors import ConfigError, DataError, TeacherError
from wid_hf.sentence_models import save_sentence_modules
from wid_hf.tools.as_is import AsIsSettings, evaluate_as_is
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf_cli.app import app

SHORT = AsIsSettings(batch_size=8, max_length=12)
UNTRAINED = CompressSettings(steps=0, batch_size=8, max_length=12)


def write(path: Path, rows: dict[str, list[Any]]) -> str:
    Dataset.from_dict(rows).to_json(path)
    return str(path)


def labelled(count: int = 24) -> dict[str, list[Any]]:
    return {"text": texts(count), "label": [number % 2 for number in range(count)]}


def tagged(count: int = 24) -> dict[str, list[Any]]:
    words = [text.split() for text in texts(count)]
    return {"tokens": words, "tags": [[len(word) % 2 for word in each] for each in words]}


def save_t5(folder: Path) -> Path:
    t5(0).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_sentences(folder: Path) -> Path:
    return write_modules(save_teacher(folder, BertModel), "Normalize")


Case = tuple[Callable[[Path], Path], dict[str, list[Any]], WidConfig]
CASES: dict[str, Case] = {
    "classes": (lambda folder: save_teacher(folder, BertForSequenceClassification), labelled(), HALF),
    "tags": (lambda folder: save_teacher(folder, BertForTokenClassification), tagged(), HALF),
    "spans": (lambda folder: save_teacher(folder, BertForQuestionAnswering), questions(24), HALF),
    "masks": (lambda folder: save_teacher(folder, BertForMaskedLM), {"text": texts(24)}, HALF),
    "targets": (save_t5, sources(24), HALF_T5),
}
FIDELITY = {"agreement", "agreement_on_rarer_classes", "divergence"}


@pytest.mark.parametrize("name", CASES)
def test_a_student_has_the_figures_that_compress_reported(name: str, tmp_path: Path) -> None:
    save, rows, half = CASES[name]
    teacher, held_out = str(save(tmp_path / "teacher")), write(tmp_path / "rows.jsonl", rows)
    settings = replace(UNTRAINED, validation=held_out)
    reported = compress(teacher, held_out, tmp_path / "student", half, settings).scores
    found = evaluate_as_is(str(tmp_path / "student"), held_out, teacher=teacher, settings=SHORT)
    assert found.scored == 24
    for side, theirs in (("model", "student"), ("teacher", "teacher")):
        assert found.scores[side] == pytest.approx(reported[theirs], abs=1e-5)
    alone = evaluate_as_is(str(tmp_path / "student"), held_out, settings=SHORT)
    own = {figure: value for figure, value in reported["student"].items() if figure not in FIDELITY}
    assert own and alone.scores == {"model": pytest.approx(own, abs=1e-5)}


def test_vectors_of_a_student_with_turned_outputs_are_compared_by_its_map(tmp_path: Path) -> None:
    teacher = save_sentences(tmp_path / "teacher")
    loaded = BertModel.from_pretrained(teacher)
    objective = find_task(loaded, word_tokenizer())
    model = turned(identity(loaded))
    batches = objective.scored(objective.features(Dataset.from_dict({"text": texts(24)}), 12), 8, 0)
    expected = objective.score(model, batches, objective.wanted(batches))
    student = model.merge_and_unload()
    student.save_pretrained(tmp_path / "student")
    word_tokenizer().save_pretrained(tmp_path / "student")
    save_sentence_modules(str(teacher), student, tmp_path / "student")
    rows = write(tmp_path / "rows.jsonl", {"text": texts(24)})
    found = evaluate_as_is(str(tmp_path / "student"), rows, teacher=str(teacher), settings=SHORT)
    assert found.scores["model"] == pytest.approx(expected, abs=1e-5)
    assert "vector_cosine" in expected


def test_figures_on_labels_are_those_of_the_models_own_classes(tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(save_teacher(tmp_path / "m", BertForSequenceClassification))
    with torch.no_grad():
        model.classifier.bias[1] = 100.0
    rows = Dataset.from_dict({"text": texts(10), "label": [1] * 7 + [0] * 3})
    found = evaluate_as_is(model, rows, processing_class=word_tokenizer(), settings=SHORT)
    assert found.scores == {"model": pytest.approx({"accuracy": 0.7, "macro_f1": (14 / 17) / 2})}


def test_examples_are_drawn_from_all_rows_and_the_same_for_all_models(tmp_path: Path) -> None:
    folder = str(save_teacher(tmp_path / "m", BertForSequenceClassification))
    rows = {"text": texts(40), "label": [0] * 20 + [1] * 20}
    few = [evaluate_as_is(folder, write(tmp_path / "rows.jsonl", rows), settings=replace(SHORT, eval_examples=20))] * 2
    assert few[0].scored == 20 and few[0].rows[str(tmp_path / "rows.jsonl")]["read"] == 40
    assert 0 < few[0].scores["model"]["accuracy"] < 1  # it gives all texts one class
    assert few[0].scores == few[1].scores


@pytest.mark.parametrize(
    ("save", "rows", "told"),
    [
        (CASES["classes"][0], {"text": texts(8)}, r"no column for label, and no teacher.* column='label=NAME'\.$"),
        (CASES["tags"][0], {"text": texts(8)}, r"no column for tags, and no teacher"),
        (save_t5, {"text": texts(8)}, r"no column for target, and no teacher"),
        (save_sentences, {"text": texts(8)}, r"a sentence encoder has no figures of its own.* with teacher=\.$"),
    ],
)
def test_without_labels_and_without_a_teacher_there_is_nothing_to_score(
    save: Callable[[Path], Path], rows: dict[str, list[Any]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        evaluate_as_is(str(save(tmp_path / "m")), write(tmp_path / "rows.jsonl", rows), settings=SHORT)


def save_with(folder: Path, **config: Any) -> str:
    """Save a classifier whose config has these fields too."""
    model = BertForSequenceClassification.from_pretrained(save_teacher(folder, BertForSequenceClassification))
    BertForSequenceClassification(type(model.config)(**{**model.config.to_dict(), **config})).save_pretrained(folder)
    return str(folder)


def test_models_that_are_not_of_a_kind_are_not_compared(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"text": texts(8)})
    names = {0: "bad", 1: "good"}
    model = save_with(tmp_path / "m", id2label=names, label2id={"bad": 0, "good": 1})
    turned = save_with(tmp_path / "turned", id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    for other, told in (
        (str(save_teacher(tmp_path / "masked", BertForMaskedLM)), "a classifier of texts, and the teacher is a masked"),
        (turned, "the classes of the model are not those of the teacher, or are in another order"),
        (save_with(tmp_path / "three", num_labels=3), "the classes of the model are not those"),
    ):
        with pytest.raises(TeacherError, match=told):
            evaluate_as_is(model, rows, teacher=other, settings=SHORT)
    unnamed = save_with(tmp_path / "unnamed")
    assert evaluate_as_is(model, rows, teacher=unnamed, settings=SHORT).scores["teacher"]["agreement"] == 1


def other_words(folder: Path) -> None:
    """Save a tokenizer that numbers the words in another order."""
    tokenizer = json.loads(word_tokenizer().backend_tokenizer.to_str())
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate([*SPECIAL, *WORDS[::-1]])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()["ten"] == len(SPECIAL)


def in_lower_case(folder: Path) -> None:
    """Save a tokenizer with the same tokens that reads texts in another way."""
    tokenizer = json.loads(word_tokenizer().backend_tokenizer.to_str())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("change", [other_words, in_lower_case])
def test_models_that_read_other_inputs_are_not_compared(change: Callable[[Path], None], tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"text": [text.title() for text in texts(8)] + texts(8)})
    model, teacher = (save_teacher(tmp_path / name, BertForSequenceClassification) for name in ("model", "teacher"))
    evaluate_as_is(str(model), rows, teacher=str(teacher), settings=SHORT)
    change(model)
    with pytest.raises(TeacherError, match="makes other inputs of texts than the teacher: their tokenizers"):
        evaluate_as_is(str(model), rows, teacher=str(teacher), settings=SHORT)


def test_rows_settings_and_tasks_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = str(save_teacher(tmp_path / "m", BertForSequenceClassification))
    empty, blank = tmp_path / "empty.jsonl", tmp_path / "blank.jsonl"
    empty.touch()
    blank.write_text('{"text": " ", "label": 1}\n')
    for rows, told in ((empty, "holds no row"), (blank, r"No row of .* can be used\. 1 of 1 rows is left out")):
        with pytest.raises(DataError, match=told):
            evaluate_as_is(model, str(rows), settings=SHORT)
    with pytest.raises(TeacherError, match="task=masked-lm is for masked language models, and BertForSequence"):
        evaluate_as_is(model, str(blank), settings=replace(SHORT, task="masked-lm"))
    with pytest.raises(DataError, match="The label 7 is none of the model's 2"):
        evaluate_as_is(model, write(tmp_path / "r.jsonl", {"text": texts(2), "label": [7, 0]}), settings=SHORT)
    for name, value in (("eval_examples", 0), ("batch_size", 0), ("max_length", 2)):
        with pytest.raises(ConfigError, match=f"{name}={value} is too small"):
            AsIsSettings(**{name: value})
    with pytest.raises(ConfigError, match="task='magic' is unknown"):
        AsIsSettings(task="magic")


def invoke(*words: str, **environment: str) -> Any:
    return CliRunner().invoke(app, ["eval", *words], env={"COLUMNS": "160", **environment}, catch_exceptions=False)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    model, teacher = (str(save_teacher(tmp_path / name, BertForSequenceClassification)) for name in ("m", "t"))
    rows = write(tmp_path / "rows.jsonl", {"rxn": texts(24), "class": [0, 1] * 12})
    words = [model, "--as-is", "--data", rows, "--column", "rxn", "--column", "label=class", "--teacher", teacher]
    shown = invoke(*words)
    assert shown.exit_code == 0
    assert f"{model}: scored as a classifier of texts (task=sequence-classification)." in shown.stdout
    assert f"{rows}: text from 'rxn', label from 'class'. None of 24 rows is left out." in shown.stdout
    settings = AsIsSettings(column=("rxn", "label=class"))
    found = evaluate_as_is(model, rows, teacher=teacher, settings=settings)
    for figure, value in found.scores["model"].items():
        assert figure.replace("_", " ") in shown.stdout and f"{value:.4f}" in shown.stdout
    printed = json.loads(invoke(*words, "--json").stdout)
    assert printed["scores"] == found.scores
    assert printed["settings"]["column"] == ["rxn", "label=class"] and printed["command"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--as-is", "name them with --data"),
        ("--as-is --data x --epochs 2", "--epochs is not for --as-is, which trains nothing"),
        ("--as-is --data x --tasks cola", "--tasks is not for --as-is"),
        ("--tasks cola --teacher t", "--teacher is for --as-is"),
        ("--tasks cola --json", "--json is for --as-is"),
        ("", "Name tasks with --tasks, or score the model on rows with --as-is and --data"),
    ],
)
def test_options_of_the_other_way_to_score_are_refused(words: str, told: str) -> None:
    result = invoke("model", *words.split(), WID_HF_DATA="tasks")
    assert result.exit_code == 2 and told in result.stderr


def test_images_that_a_table_names_are_scored_and_compared_only_if_both_see_them_alike(tmp_path: Path) -> None:
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    table = tmp_path / "rows.csv"
    table.write_text("image,label\n" + "".join(f"{number}.png,{number % 3}\n" for number in range(6)))
    for seed, name in enumerate(("model", "teacher")):
        teacher_of("images", seed).save_pretrained(tmp_path / name)
        processor_of("images", tmp_path).save_pretrained(tmp_path / name)
    model, teacher = (str(tmp_path / name) for name in ("model", "teacher"))
    found = evaluate_as_is(model, str(table), teacher=teacher, settings=SHORT)
    assert found.unit == "images" and found.scored == 6
    assert found.scores["model"]["agreement"] < 1 == found.scores["teacher"]["agreement"]
    assert found.scores["model"]["accuracy"] == evaluate_as_is(model, str(table)).scores["model"]["accuracy"]
    settings = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(TeacherError, match="makes other inputs of images than the teacher"):
        evaluate_as_is(model, str(table), teacher=teacher, settings=SHORT)
