from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from wid_hf.errors import DataError, WidWarning
from wid_hf.rows import find_columns, load_rows, named_columns
from wid_hf.rows.roles import (
    ANSWERS,
    CHOICES,
    CONTEXT,
    IMAGE,
    LABEL,
    LABELS,
    PROMPT,
    QUESTION,
    TAGS,
    TARGET,
    TEXT,
    TEXT_PAIR,
    WORDS,
    Role,
)

TEXTS = (TEXT, TEXT_PAIR, LABEL)
SHORT: dict[str, Any] = {
    "str": Value("string"),
    "int": Value("int64"),
    "strs": List(Value("string")),
    "ints": List(Value("int64")),
    "classes": ClassLabel(names=["no", "yes"]),
    "image": Image(),
    "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    "no answers": {"text": List(Value("null")), "answer_start": List(Value("null"))},
    "one answer": {"text": Value("string"), "answer_start": Value("int64")},
    "float answers": {"text": List(Value("string")), "answer_start": List(Value("float64"))},
    "nothing": Value("null"),
}


def rows_with(**columns: str) -> Dataset:
    """No row at all, of columns that hold what `SHORT` names."""
    features = Features({name: SHORT[kind] for name, kind in columns.items()})
    return Dataset.from_dict({name: [] for name in columns}, features=features)


def found(roles: tuple[Role, ...], given: dict[str, str] | None = None, **columns: str) -> dict[str, str]:
    return find_columns(rows_with(**columns), roles, given or {}, "corpus")


def refusal(roles: tuple[Role, ...], given: dict[str, str] | None = None, **columns: str) -> str:
    with pytest.raises(DataError) as refused:
        found(roles, given, **columns)
    return str(refused.value)


@pytest.mark.parametrize(
    ("roles", "columns", "wanted"),
    [
        (TEXTS, {"id": "str", "text": "str"}, {"text": "text"}),
        (TEXTS, {"sentence": "str", "idx": "int", "label": "classes"}, {"text": "sentence", "label": "label"}),
        (TEXTS, {"title": "str", "content": "str", "label": "int"}, {"text": "content", "label": "label"}),
        (
            TEXTS,
            {"premise": "str", "hypothesis": "str", "label": "classes"},
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (TEXTS, {"question": "str", "sentence": "str"}, {"text": "question", "text_pair": "sentence"}),
        ((TEXT, TEXT_PAIR, LABELS), {"text": "str", "labels": "strs"}, {"text": "text", "label": "labels"}),
        ((WORDS, TAGS), {"tokens": "strs", "text": "str", "ner_tags": "ints"}, {"text": "tokens", "tags": "ner_tags"}),
        ((WORDS, TAGS), {"rxn": "str"}, {"text": "rxn"}),
        (
            (QUESTION, CONTEXT, ANSWERS),
            {"title": "str", "question": "str", "context": "str", "answers": "answers"},
            {"question": "question", "context": "context", "answers": "answers"},
        ),
        ((TEXT, TARGET), {"article": "str", "highlights": "str"}, {"text": "article", "target": "highlights"}),
        (
            (PROMPT, CHOICES, LABEL),
            {"ctx": "str", "endings": "strs", "label": "str"},
            {"question": "ctx", "choices": "endings", "label": "label"},
        ),
        ((IMAGE, LABEL), {"img": "image", "label": "classes"}, {"image": "img", "label": "label"}),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else None,
)
def test_usual_columns_are_found_by_their_names(
    roles: tuple[Role, ...], columns: dict[str, str], wanted: dict[str, str]
) -> None:
    assert found(roles, **columns) == wanted


def test_the_only_column_of_strings_that_is_left_is_the_text() -> None:
    assert found(TEXTS, rxn="str", **{"class": "int"}) == {"text": "rxn"}
    assert found(TEXTS, headline="str", label="str") == {"text": "headline", "label": "label"}
    assert "no column for text" in refusal((TEXT,), headline="str", label="str")


def test_columns_that_belong_together_are_found_together_or_not_at_all() -> None:
    assert found(TEXTS, sentence="str", sentence2="str") == {"text": "sentence"}
    assert found(TEXTS, sentence1="str", sentence2="ints") == {"text": "sentence1"}
    assert found((TEXT,), text="str", sentence1="str", sentence2="str") == {"text": "text"}


def test_a_column_of_another_kind_is_not_taken_for_its_name() -> None:
    assert found(TEXTS, text="ints", sentence="str", label="strs", score="int") == {
        "text": "sentence",
        "label": "score",
    }


@pytest.mark.parametrize(
    ("roles", "columns", "told"),
    [
        (TEXTS, {"label": "strs"}, "The column 'label' holds list of string in corpus, and label must be strings or"),
        (TEXTS, {"label": "strs", "score": "ints"}, "'label' holds list of string; 'score' holds list of int64"),
        ((WORDS, TAGS), {"tags": "str"}, "'tags' holds string in corpus, and tags must be lists of strings or numbers"),
        ((QUESTION, CONTEXT, ANSWERS), {"context": "str", "answers": "str"}, "must be answers: the lists `text`, of"),
        ((QUESTION, CONTEXT, ANSWERS), {"context": "str", "answers": "one answer"}, "struct of text: string, answer_"),
        ((QUESTION, CONTEXT, ANSWERS), {"context": "str", "answers": "float answers"}, "answer_start: list of float64"),
    ],
)
def test_labels_of_another_kind_are_refused_and_not_passed_over(
    roles: tuple[Role, ...], columns: dict[str, str], told: str
) -> None:
    first, target = roles[0].name, roles[-1].name
    refused = refusal(roles, **{first: "str"}, **columns)
    assert told in refused
    assert refused.endswith(f"To use none, say column='{target}='.")
    assert target not in found(roles, {target: ""}, **{first: "str"}, **columns)


def test_a_column_without_a_value_is_no_label_and_told() -> None:
    with pytest.warns(WidWarning, match="corpus has no label: 'label' holds no value"):
        assert found(TEXTS, text="str", label="nothing") == {"text": "text"}


def test_one_label_or_a_list_may_stand_where_several_can_hold() -> None:
    for kind in ("str", "int", "strs", "ints", "classes"):
        assert found((TEXT, LABELS), text="str", label=kind) == {"text": "text", "label": "label"}


def test_answers_of_which_all_are_empty_have_no_type() -> None:
    columns = {"question": "str", "context": "str", "answers": "no answers"}
    assert "answers" in found((QUESTION, CONTEXT, ANSWERS), **columns)


def test_a_choice_of_the_user_goes_before_usual_names() -> None:
    assert found(TEXTS, {"text": "body"}, text="str", body="str", label="int") == {"text": "body", "label": "label"}
    assert found(TEXTS, {"text": "text_a"}, text_a="str", text_b="str") == {"text": "text_a"}
    assert found(TEXTS, {"label": ""}, text="str", label="int") == {"text": "text"}


def test_words_of_the_command_line_name_columns() -> None:
    assert named_columns(["rxn", "label=class", "target="]) == {"text": "rxn", "label": "class", "target": ""}


def test_columns_are_listed_with_what_they_hold_where_none_fits() -> None:
    told = refusal((TEXT,), text_b="str", text_a="str", label="classes", tags="strs", answers="answers")
    assert told.startswith("corpus has no column for text, such as text, sentence,")
    assert "label (one of 2 classes), tags (list of string), text_a (string), text_b (string)" in told
    assert "answers (struct of text: list of string, answer_start: list of int64)" in told
    assert told.endswith("Name one that holds strings by column='text=NAME'.")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"text": "body"}, "corpus has no column 'body' for text. Its columns: label (int64), text (string)."),
        ({"text": "label"}, "The column 'label' of corpus holds int64, and text must be strings."),
        ({"text": ""}, "corpus has no column '' for text"),
        ({"txt": "text"}, "column='txt=text' names no role of this task. Its roles: text, text_pair, label."),
        ({"text": "text", "text_pair": "text"}, "The column 'text' is named for text and for text_pair."),
    ],
)
def test_a_wrong_choice_is_refused_with_what_there_is(given: dict[str, str], told: str) -> None:
    assert told in refusal(TEXTS, given, text="str", label="int")


def test_columns_of_a_stream_that_does_not_know_them_are_found_by_its_first_rows(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text("headline,label\none,1\n")
    rows = load_rows(str(tmp_path / "corpus.csv"), streaming=True)
    assert rows.features is None
    assert find_columns(rows, TEXTS, {}, "corpus") == {"text": "headline", "label": "label"}


def test_the_answers_of_squad_are_found_in_json_lines(tmp_path: Path) -> None:
    row = {"id": "1", "context": "a b", "question": "b?", "answers": {"text": ["b"], "answer_start": [2]}}
    (tmp_path / "squad.jsonl").write_text(json.dumps(row) + "\n")
    rows = load_rows(str(tmp_path / "squad.jsonl"))
    assert find_columns(rows, (QUESTION, CONTEXT, ANSWERS), {}, "squad")["answers"] == "answers"


REAL = {
    "agnews/test.jsonl": (TEXTS, ("text", "label")),
    "glue/cola/dev.jsonl": (TEXTS, ("text", "label")),
    "glue/stsb/dev.jsonl": (TEXTS, ("text_a", "text_b", "label")),
    "glue/qnli/dev.jsonl": (TEXTS, ("text_a", "text_b", "label")),
    "uspto50k/valid.jsonl.gz": (TEXTS, ("rxn",)),
    "ner/wnut17/dev.jsonl.gz": ((WORDS, TAGS), ("tokens", "tags")),
    "pos/ud_ewt/dev.jsonl.gz": ((WORDS, TAGS), ("tokens", "tags")),
    "wikinews/wikinews_en_clean.jsonl.gz": (TEXTS, ("text",)),
    "squad/dev.jsonl.gz": ((QUESTION, CONTEXT, ANSWERS), ("question", "context", "answers")),
}


@pytest.mark.parametrize("name", REAL)
def test_columns_of_real_data_need_no_naming(name: str, real_data: Path) -> None:
    roles, wanted = REAL[name]
    rows = load_rows(str(real_data / name), streaming=True)
    assert tuple(find_columns(rows, roles, {}, name).values()) == wanted
