from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from datasets import Dataset

from wid_hf.errors import DataError
from wid_hf.tools.data import hold_out, load_texts

TEXTS = ["one two", "three", "four five six"]


def write(path: Path, content: str) -> str:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_a_text_file_gives_one_text_per_line_without_blank_ones(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, "one two\n\nthree\r\n   \nfour five six")
    texts = load_texts(source)
    assert texts.column_names == ["text"]
    assert texts["text"][:] == TEXTS


def test_a_line_separator_inside_a_text_does_not_split_it(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.json", '{"text": "one\u2028two"}\n{"text": "three"}\n')
    assert load_texts(source)["text"][:] == ["one\u2028two", "three"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.json", "corpus.json.gz"])
def test_json_lines_are_read_from_the_text_column_with_nulls_dropped(tmp_path: Path, name: str) -> None:
    rows = [{"text": text, "title": "t", "label": 1} for text in TEXTS]
    rows += [{"text": None, "title": "t", "label": 1}, {"title": "t", "label": 1}]
    assert load_texts(write(tmp_path / name, json_lines(rows)))["text"][:] == TEXTS


def test_a_json_list_is_read_like_json_lines(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.json", json.dumps([{"text": text} for text in TEXTS], indent=1))
    assert load_texts(source)["text"][:] == TEXTS


def test_the_only_string_column_is_found_without_being_named(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.jsonl", json_lines([{"rxn": text, "class": 1} for text in TEXTS]))
    assert load_texts(source)["text"][:] == TEXTS


def test_a_named_column_goes_before_the_text_column(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.jsonl", json_lines([{"text": "no", "body": text} for text in TEXTS]))
    assert load_texts(source, column="body")["text"][:] == TEXTS


def test_two_string_columns_are_listed_instead_of_guessed(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.jsonl", json_lines([{"text_b": "x", "text_a": "y", "label": 1}]))
    with pytest.raises(DataError, match=r"2 text columns and none called 'text': text_a, text_b"):
        load_texts(source)


@pytest.mark.parametrize("column", ["body", "label"])
def test_a_column_that_is_absent_or_holds_numbers_is_refused_with_the_legal_ones(tmp_path: Path, column: str) -> None:
    source = write(tmp_path / "corpus.jsonl", json_lines([{"text": "x", "label": 1}]))
    with pytest.raises(DataError, match=rf"no text column '{column}'. Its text columns: text\."):
        load_texts(source, column=column)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*absent\.jsonl\.gz.*\.txt, \.jsonl or \.json"):
        load_texts(str(tmp_path / "absent.jsonl.gz"))


def test_a_file_of_another_kind_is_refused_with_the_legal_kinds(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.parquet", "PAR1")
    with pytest.raises(DataError, match=r"corpus\.parquet is not a file .*\.txt, \.jsonl or \.json"):
        load_texts(source)


@pytest.mark.parametrize("content", ["", "\n  \n\n"])
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz", "corpus.jsonl", "corpus.json"])
def test_an_empty_or_blank_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=r"corpus\..* holds no text: it is empty or all blank"):
        load_texts(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["garbage.txt", "garbage.txt.gz", "garbage.jsonl", "garbage.json"])
def test_binary_garbage_is_refused_with_the_cause_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(128, 256)) * 8)
    with pytest.raises(DataError, match=r"garbage\..* cannot be read: .* download it again") as refusal:
        load_texts(str(tmp_path / name))
    assert isinstance(refusal.value.__cause__, (UnicodeDecodeError, gzip.BadGzipFile))


def test_zero_bytes_in_a_text_file_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2 holds a zero byte"):
        load_texts(write(tmp_path / "corpus.txt", "one\nt\0wo\n"))


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress("\n".join(map(str, range(5000))).encode())[:-900])
    with pytest.raises(DataError, match=r"cannot be read: Compressed file ended .* complete file") as refusal:
        load_texts(str(path))
    assert isinstance(refusal.value.__cause__, EOFError)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("corpus.jsonl", '{"text": "x"}\n{"text": \n', r"line 2 is not JSON"),
        ("corpus.jsonl", '{"text": "x"}\n"y"\n', r"line 2 is not a JSON object"),
        ("corpus.json", '[{"text": "x"}, 3]', r"entry 2 is not a JSON object"),
        ("corpus.json", '[{"text": "x"}', r"cannot be read: Expecting"),
    ],
)
def test_broken_json_is_refused_with_the_place(tmp_path: Path, name: str, content: str, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_texts(write(tmp_path / name, content))


def test_a_dataset_name_with_config_and_split_reaches_the_loader_and_keeps_only_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> Dataset:
        asked.append((name, config, split))
        return Dataset.from_dict({"sentence": ["a", " ", "b"], "label": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    texts = load_texts("glue:sst2", split="validation")
    assert asked == [("glue", "sst2", "validation")]
    assert texts.column_names == ["text"]
    assert texts["text"][:] == ["a", "b"]


def test_a_dataset_that_cannot_be_loaded_is_refused_with_the_cause_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = ConnectionError("Couldn't reach the Hub")

    def load_dataset(*_: Any, **__: Any) -> NoReturn:
        raise unreachable

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'no_such_set' is not a file .* Couldn't reach the Hub") as refusal:
        load_texts("no_such_set")
    assert refusal.value.__cause__ is unreachable


def test_hold_out_parts_every_text_once_and_repeats_with_its_seed() -> None:
    texts = Dataset.from_dict({"text": [str(number) for number in range(50)]})
    train, validation = hold_out(texts, 8, seed=3)
    assert (len(train), len(validation)) == (42, 8)
    assert sorted(train["text"][:] + validation["text"][:]) == sorted(texts["text"][:])
    assert hold_out(texts, 8, seed=3)[1]["text"][:] == validation["text"][:]
    assert hold_out(texts, 8, seed=4)[1]["text"][:] != validation["text"][:]


@pytest.mark.parametrize("validation", [0, -1, 3, 9])
def test_hold_out_refuses_to_leave_a_part_empty(validation: int) -> None:
    with pytest.raises(DataError, match=rf"cannot hold out {validation} of 3 texts. Legal: 1 to 2\."):
        hold_out(Dataset.from_dict({"text": TEXTS}), validation, seed=0)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_texts_to_hold_one_out_are_told_how_many_it_takes(count: int) -> None:
    with pytest.raises(DataError, match=rf"^{count} text.*at least 2 are needed"):
        hold_out(Dataset.from_dict({"text": TEXTS[:count]}), 1, seed=0)
