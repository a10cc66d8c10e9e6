"""Texts from a file or a dataset.

Takes a text file, a JSON file or the name of a dataset; gives a `datasets.Dataset` with the one column
"text", then its hold-out split. Called by the commands.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import datasets
from datasets import Dataset

from ..errors import DataError
from ..hub.paths import expanded
from ..progress_bar import progress_bar

FILE_KINDS = (".txt", ".jsonl", ".json")
LEGAL_SOURCES = (
    "a .txt, .jsonl or .json file (each also with .gz), or a dataset name such as 'ag_news' or 'name:config'"
)


def load_texts(source: str, *, column: str | None = None, split: str = "train") -> Dataset:
    """All texts of `source` in order, as a dataset with the one column "text"; blank ones are dropped.

    `source` is a .txt file with one text per line, a .jsonl file with one object per line, a .json file
    with a list of objects (each also with .gz), or a dataset name, "name" or "name:config".
    `column` is the name of the column of texts; by default "text", else the only column of strings.
    `split` chooses among the splits of a named dataset; a file has only one.

    Raises DataError when the source is missing, unreadable or empty, or the column is not clear.
    """
    source = expanded(source)
    path = Path(source)
    if _kind(path) in FILE_KINDS:
        texts = _file_texts(path, column)
    elif path.is_file() or path.is_absolute():
        raise DataError(f"{source} is not a file wid_hf can read. Give {LEGAL_SOURCES}.")
    else:
        texts = _named_texts(source, column, split)
    if not len(texts):
        raise DataError(f"{source} holds no text: it is empty or all blank. Give a source with at least one text.")
    return texts


def load_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of the text or JSON file `path`, one dictionary each; a text file's have the one column "text".

    Raises DataError when the file is missing or is not what its suffix says.
    """
    path = Path(expanded(path))
    if not path.is_file():
        raise DataError(f"there is no file {path}. Give {LEGAL_SOURCES}.")
    try:
        return list(_read_rows(path))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It must be a complete file in UTF-8 of the kind its suffix "
            "says: write or download it again, or correct the suffix."
        ) from error


def hold_out(texts: Dataset, validation: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split at random into (train, validation) with `validation` rows in the second.

    The same seed gives the same split. Raises DataError unless both parts get at least one row.
    """
    if len(texts) < 2:
        raise DataError(
            f"{len(texts)} {'text is' if len(texts) == 1 else 'texts are'} too few to hold some out for validation: at "
            "least 2 are needed. Give more texts, or separate ones to score on with validation=."
        )
    if not 0 < validation < len(texts):
        raise DataError(
            f"cannot hold out {validation} of {len(texts)} texts. Legal: 1 to {len(texts) - 1}. "
            "Hold out fewer validation texts, or give more texts."
        )
    parts = texts.train_test_split(test_size=validation, seed=seed)
    return parts["train"], parts["test"]


def _file_texts(path: Path, column: str | None) -> Dataset:
    rows = load_rows(path)
    if not rows:
        return Dataset.from_dict({"text": []})
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
    strings = [name for name, types in kinds.items() if types - {NoneType} == {str}]
    chosen = _text_column(str(path), column, strings)
    return Dataset.from_dict({"text": [row[chosen] for row in rows if _is_text(row.get(chosen))]})


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a text or JSON file; a ValueError says on which line it is not one."""
    kind = _kind(path)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as lines:
        if kind == ".json":
            yield from _json_rows(lines.read())
        else:
            for number, line in enumerate(progress_bar(lines, f"Reading {path.name}"), start=1):
                if not line.isspace():
                    yield _json_row(line, number) if kind == ".jsonl" else _text_row(line, number)


def _json_rows(content: str) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list of objects or, as in many .json files, of one object per line."""
    if content.lstrip().startswith("["):
        for number, row in enumerate(json.loads(content), start=1):
            if not isinstance(row, dict):
                raise ValueError(f"entry {number} is not a JSON object")
            yield row
    else:
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield _json_row(line, number)


def _json_row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _text_row(line: str, number: int) -> dict[str, Any]:
    if "\0" in line:
        raise ValueError(f"line {number} holds a zero byte, which no text does")
    return {"text": line.rstrip("\r\n")}


def _named_texts(source: str, column: str | None, split: str) -> Dataset:
    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the loaders of `datasets` raise errors of every class
        raise DataError(
            f"{source!r} is not a file here, and its split {split!r} cannot be loaded as a dataset: {error}. "
            f"Give {LEGAL_SOURCES}, and check the network and the split."
        ) from error
    strings = [
        name
        for name, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    column = _text_column(source, column, strings)
    texts = dataset.select_columns(column)
    texts = texts if column == "text" else texts.rename_column(column, "text")
    return texts.filter(_is_text, input_columns="text", desc="Dropping blank texts")


def _text_column(source: str, column: str | None, strings: list[str]) -> str:
    """The column of texts: the given one, else "text", else the only one that holds strings."""
    listed = ", ".join(sorted(strings)) or "none"
    if column is not None and column not in strings:
        raise DataError(f"{source} has no text column {column!r}. Its text columns: {listed}. Name one of them.")
    if column is not None:
        return column
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise DataError(
            f"{source} has {len(strings)} text columns and none called 'text': {listed}. "
            "Name the one to read with column=; it must hold strings."
        )
    return strings[0]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
