"""Tables whose first line is a row: what would be lost is told, and real names are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from wid_hf.errors import DataError
from wid_hf.rows import find_columns, load_rows
from wid_hf.rows.roles import LABEL, TEXT, TEXT_PAIR

ROLES = (TEXT, TEXT_PAIR, LABEL)


def table(folder: Path, *lines: str) -> str:
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "rows.csv")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "lines",
    [
        ["good film,1", "bad film,0", "a film,1"],  # a number above numbers
        ["good", "bad", "good"],  # a word that comes again
        ["it was a good film", "it was not", "never"],  # a sentence
        ["3,good film,0.5", "4,bad film,0.25"],
    ],
)
def test_a_row_that_was_taken_for_names_is_refused(lines: list[str], streaming: bool, tmp_path: Path) -> None:
    source = table(tmp_path, *lines)
    rows = load_rows(source, streaming=streaming)
    with pytest.raises(DataError, match=r"looks like a row: .* put a line of names before it, such as text or text,l"):
        find_columns(rows, ROLES, {}, source)


@pytest.mark.parametrize(
    "lines",
    [
        ["headline,stars", "good film,1", "bad film,0"],
        ["0,1", "good film,1", "bad film,0"],  # as pandas writes a table without names
        ["headline,2024", "good film,good", "bad film,bad"],  # no number above numbers
        ["text,label", "good film,1", "text,0"],
        ["a,label", "a,1", "b,0"],  # one of the names is usual
    ],
)
def test_names_are_names(lines: list[str], tmp_path: Path) -> None:
    source = table(tmp_path, *lines)
    first = {"headline,2024": "text=headline"}.get(lines[0], "")
    given = dict([first.split("=")]) if first else {}
    assert find_columns(load_rows(source), ROLES, given, source)["text"] == lines[0].split(",")[0]


def test_a_column_that_the_user_names_has_that_name(tmp_path: Path) -> None:
    source = table(tmp_path, "it was a good film", "it was not")
    assert find_columns(load_rows(source), ROLES, {"text": "it was a good film"}, source) == {
        "text": "it was a good film"
    }
