"""Columns inside of others, named by dots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Translation

from wid_hf.errors import DataError
from wid_hf.rows import find_columns, load_rows, load_texts, prepare
from wid_hf.rows.inner import with_inner_columns
from wid_hf.rows.roles import TARGET, TEXT

PAIRS = [{"de": "ja", "en": "yes"}, {"de": None, "en": "no"}, {"de": "nein", "en": "no"}, None]
NAMED = {"text": "translation.de", "target": "translation.en"}
SOURCES = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


def written(folder: Path, rows: list[Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chosen(rows: Any) -> list[Any]:
    rows = with_inner_columns(rows, NAMED.values())
    return list(prepare(rows, find_columns(rows, [TEXT, TARGET], NAMED, "it"), [TEXT, TARGET]).rows)


@SOURCES
def test_a_column_is_reached_by_dots_and_rows_without_a_value_are_left_out(tmp_path: Path, streaming: bool) -> None:
    rows = load_rows(written(tmp_path, [{"translation": pair} for pair in PAIRS]), streaming=streaming)
    assert chosen(rows) == [{"text": "ja", "target": "yes"}, {"text": "nein", "target": "no"}]


def test_translations_of_datasets_are_such_columns_at_any_depth() -> None:
    features = Features({"translation": Translation(["de", "en"])})
    assert chosen(Dataset.from_dict({"translation": PAIRS[::2]}, features)) == [
        {"text": "ja", "target": "yes"},
        {"text": "nein", "target": "no"},
    ]
    deep = with_inner_columns(Dataset.from_list([{"a": {"b": {"c": "x"}}, "d": 1}]), ["a.b.c"])
    assert deep[:] == {"a": [{"b": {"c": "x"}}], "d": [1], "a.b.c": ["x"]}


def test_names_that_lead_nowhere_add_nothing_and_are_refused_later(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"translation": PAIRS[0], "a.b": "dotted"}])
    assert with_inner_columns(rows, ["translation.fr", "other.x", "translation.de.x", "a.b", ""]) is rows
    with pytest.raises(
        DataError, match=r"no column 'translation\.fr' for text.*translation \(struct of de: string, en: string\)"
    ):
        find_columns(rows, [TEXT], {"text": "translation.fr"}, "it")
    texts = load_texts(written(tmp_path, [{"translation": PAIRS[0]}]), column="translation.en")
    assert texts[:] == {"text": ["yes"]}
