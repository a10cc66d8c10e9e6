from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from test_source import write_wave

from wid_hf.errors import DataError
from wid_hf.rows import Prepared, load_rows, prepare
from wid_hf.rows.roles import ANSWERS, AUDIO, CHOICES, IMAGE, LABEL, LABELS, TAGS, TEXT, TEXT_PAIR, WORDS, Role

ROWS = [
    {"body": "a", "text": "first", "mood": 1},
    {"body": "b", "text": " \n", "mood": 1},
    {"body": "c", "text": None, "mood": 2},
    {"body": "d", "text": "fourth", "mood": None},
    {"body": "e", "text": "fifth", "mood": 3},
]
COLUMNS = {"text": "text", "label": "mood"}
SOURCES = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


def dataset(rows: list[dict[str, Any]], streaming: bool, **given: Any) -> Any:
    made = Dataset.from_list(rows, **given)
    return made.to_iterable_dataset() if streaming else made


def prepared(streaming: bool, why_unusable: Any = None) -> Prepared:
    return prepare(dataset(ROWS, streaming), COLUMNS, [TEXT, LABEL], why_unusable)


@SOURCES
def test_rows_have_the_columns_of_roles_alone_and_incomplete_ones_are_counted_by_reason(streaming: bool) -> None:
    made = prepared(streaming)
    assert made.rows.column_names == ["text", "label"]
    assert list(made.rows) == [{"text": "first", "label": 1}, {"text": "fifth", "label": 3}]
    assert made.dropped == {"the text is blank": 2, "there is no label": 1}
    assert (made.read, made.columns) == (5, COLUMNS)


@SOURCES
def test_a_task_says_which_rows_it_cannot_use(streaming: bool) -> None:
    made = prepared(streaming, lambda row: None if row["label"] < 3 else f"there is no class {row['label']}")
    assert list(made.rows) == [{"text": "first", "label": 1}]
    assert made.dropped["there is no class 3"] == 1


def test_rows_that_are_left_out_are_told_in_one_sentence() -> None:
    told = "3 of 5 rows are left out: the text is blank (2), there is no label (1)."
    assert prepared(streaming=False).words() == told
    one = prepare(dataset(ROWS[:2], False), {"text": "text"}, [TEXT])
    assert one.words() == "1 of 2 rows is left out: the text is blank (1)."
    assert prepare(dataset(ROWS[:1], False), {"text": "text"}, [TEXT]).words() == "None of 1 rows is left out."


def test_a_stream_counts_what_it_has_read_once_however_often_it_is_read() -> None:
    made = prepared(streaming=True)
    assert made.read == 1  # that there is a row is known before training
    for _ in range(2):
        assert len(list(made.rows.skip(1))) == 1
        assert made.words() == ("3 of 5 rows read so far are left out: the text is blank (2), there is no label (1).")


@SOURCES
def test_a_role_may_have_the_name_of_the_column_of_another(streaming: bool) -> None:
    made = prepare(dataset(ROWS[:1], streaming), {"text": "body", "text_pair": "text"}, [TEXT, TEXT_PAIR])
    assert list(made.rows) == [{"text": "a", "text_pair": "first"}]


@SOURCES
def test_nothing_left_is_refused_with_the_source_and_the_reasons(streaming: bool) -> None:
    with pytest.raises(
        DataError, match=r"No row of corpus can be used\. 2 of 2 rows.* left out: the text is blank \(2\)"
    ):
        prepare(dataset(ROWS[1:3], streaming), {"text": "text"}, [TEXT], source="corpus")


@SOURCES
def test_classes_keep_their_names_and_a_row_without_a_class_is_left_out(streaming: bool) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = dataset([{"text": "a", "label": 1}, {"text": "b", "label": -1}], streaming, features=features)
    made = prepare(rows, {"text": "text", "label": "label"}, [TEXT, LABEL])
    assert (list(made.rows), made.rows.features["label"].names) == ([{"text": "a", "label": 1}], ["no", "yes"])
    assert made.dropped == {"there is no label": 1}
    numbers = dataset([{"text": "a", "label": -1}, {"text": "b", "label": float("nan")}], streaming)
    assert list(prepare(numbers, {"text": "text", "label": "label"}, [TEXT, LABEL]).rows) == [
        {"text": "a", "label": -1}
    ]


@SOURCES
def test_lists_must_hold_something_but_a_question_may_have_no_answer(streaming: bool) -> None:
    tagged = [{"text": ["a"], "tags": [0]}, {"text": [], "tags": []}, {"text": ["a"], "tags": None}]
    made = prepare(dataset(tagged, streaming), {"text": "text", "tags": "tags"}, [WORDS, TAGS])
    assert list(made.rows) == tagged[:1]
    assert made.dropped == {"the text is blank": 1, "there are no tags": 1}
    asked = [{"text": "a", "answers": {"text": [], "answer_start": []}}, {"text": "a", "answers": None}]
    assert list(prepare(dataset(asked, streaming), {"answers": "answers"}, [ANSWERS]).rows) == [
        {"answers": asked[0]["answers"]}
    ]


@SOURCES
@pytest.mark.parametrize(
    ("role", "whole", "lacking", "why"),
    [
        (WORDS, ["a", "b"], ["a", None], "a word of the text is missing"),
        (TAGS, [0, 1], [0, None], "one of the tags is missing"),
        (CHOICES, ["a", "b"], [None, "b"], "one of the choices is missing"),
        (ANSWERS, {"text": ["a"], "answer_start": [1]}, {"text": [None], "answer_start": [1]}, "one of the answers"),
        (ANSWERS, {"text": ["a"], "answer_start": [1]}, {"text": ["a"], "answer_start": [None]}, "one of the answers"),
        (ANSWERS, {"text": ["a"], "answer_start": [1]}, {"text": None, "answer_start": None}, "there are no answers"),
        (LABELS, ["a", "b"], [None, "b"], "a label is missing"),
    ],
)
def test_a_row_with_something_missing_in_a_list_is_left_out(
    role: Role, whole: Any, lacking: Any, why: str, streaming: bool
) -> None:
    rows = dataset([{role.name: whole}, {role.name: lacking}], streaming)
    made = prepare(rows, {role.name: role.name}, [role])
    assert list(made.rows) == [{role.name: whole}]
    ((told, count),) = made.dropped.items()
    assert told.startswith(why)
    assert count == 1


@SOURCES
def test_none_of_several_labels_may_hold(streaming: bool) -> None:
    rows = [{"label": ["a"]}, {"label": []}, {"label": None}]
    made = prepare(dataset(rows, streaming), {"label": "label"}, [LABELS])
    assert list(made.rows) == rows[:2]
    assert made.dropped == {"there is no label": 1}


def write_images(folder: Path) -> None:
    for name, grey in (("cat", 10), ("dog", 20)):
        (folder / name).mkdir(parents=True)
        Image.new("L", (2, 2), grey).save(folder / name / "0.png")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(noise).save(folder / "dog" / "1.png")
    (folder / "dog" / "1.png").write_bytes((folder / "dog" / "1.png").read_bytes()[:800])
    (folder / "dog" / "2.png").write_text("no image at all")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Pillow leaves files that it cannot decode open
@SOURCES
@pytest.mark.parametrize("name", ["image", "picture"])
def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path, streaming: bool, name: str) -> None:
    write_images(tmp_path)
    rows = load_rows(str(tmp_path), streaming=streaming)
    made = prepare(rows, {name: "image", "label": "label"}, [replace(IMAGE, name=name), LABEL])
    taken = made.rows.map(lambda row: {"grey": row[name].getpixel((0, 0))}, remove_columns=name)
    assert [(row["grey"], row["label"]) for row in taken] == [(10, 0), (20, 1)]
    assert made.dropped == {f"the {name} cannot be read": 2}
    gc.collect()


@SOURCES
def test_sounds_stay_undecoded_and_those_that_cannot_be_read_are_left_out(tmp_path: Path, streaming: bool) -> None:
    path = write_wave(tmp_path / "a.wav", np.array([1, 2], "<i2").tobytes())
    (tmp_path / "b.wav").write_text("no sound at all")
    write_wave(tmp_path / "c.wav", b"")
    made = prepare(load_rows(str(tmp_path), streaming=streaming), {"audio": "audio"}, [AUDIO])
    assert list(made.rows) == [{"audio": {"bytes": None, "path": str(path)}}]
    assert made.dropped == {"the audio cannot be read": 1, "the audio is empty": 1}


def test_rows_of_a_stream_of_csv_know_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text("headline,label\none,1\n")
    made = prepare(load_rows(str(tmp_path / "corpus.csv"), streaming=True), {"text": "headline"}, [TEXT])
    assert made.rows.features == Features({"text": Value("string")})
