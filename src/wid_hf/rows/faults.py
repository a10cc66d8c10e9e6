"""Which line of which file cannot be read: asked when a builder of `datasets` failed, which seldom says it.

Takes files of text, JSON or CSV and reads them line by line, or counts the rows of Parquet; gives a refusal, or nothing
if all is well.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pyarrow import ArrowException, parquet

from ..errors import DataError
from ..progress_bar import progress_bar

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


def refuse_faults(files: Sequence[Path], builder: str) -> None:
    """Raise DataError for the first line that is wrong in `files`, or if they hold no row.

    Args:
        files: in order.
        builder: name of the builder of `datasets` that reads such files; only those of text, JSON and CSV are checked,
            and none that zstd compressed. Of Parquet, rows are counted.
    """
    if builder == "parquet":
        _refuse_no_row(files, _rows_of_parquet(files))
        return
    rows_of = _ROWS.get(builder)
    if rows_of is None or any(file.suffix.lower() == ".zst" for file in files):
        return
    rows = 0
    for file in files:
        try:
            with opened(file) as lines:
                rows += sum(1 for _ in rows_of(progress_bar(lines, f"Reading {file.name}")))
        except UNREADABLE as error:
            raise DataError(
                f"{file} cannot be read: {error}. It must be a complete file in UTF-8 of the kind its suffix says: "
                "write or download it again, or correct the suffix."
            ) from error
    _refuse_no_row(files, rows)


def _refuse_no_row(files: Sequence[Path], rows: int | None) -> None:
    if rows == 0:
        raise DataError(f"{', '.join(map(str, files))} holds no row: it is empty or all blank. Give at least one row.")


def _rows_of_parquet(files: Sequence[Path]) -> int | None:
    """Return how many rows there are, None where that cannot be read."""
    try:
        return sum(int(parquet.read_metadata(file).num_rows) for file in files)
    except (OSError, ArrowException):
        return None


def opened(file: Path) -> TextIO:
    """Open a file of text that may be compressed, but not by zstd; reading may raise any of `UNREADABLE`."""
    made: TextIO = _OPENED.get(file.suffix.lower(), open)(file, "rt", encoding="utf-8-sig")
    return made


def _text_rows(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines that are not blank; a ValueError says which holds a zero byte."""
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(f"line {number} holds a zero byte, which no text does")
        if not line.isspace():
            yield line


def _csv_rows(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines after the header."""
    rows = _text_rows(lines)
    next(rows, None)
    yield from rows


def _json_rows(lines: Iterator[str]) -> Iterator[dict]:
    """Yield the objects of JSON lines or of one JSON list; a ValueError says which line or entry is none."""
    begun = False
    for number, line in enumerate(lines, start=1):
        if not begun and line.lstrip().startswith("["):
            yield from _json_list(line + "".join(lines))
        elif not line.isspace():
            begun = True
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")
            yield row


def _json_list(content: str) -> Iterator[dict]:
    for number, row in enumerate(json.loads(content), start=1):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number} is not a JSON object")
        yield row


_OPENED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ROWS: dict[str, Callable[[Iterator[str]], Iterator[object]]] = {
    "text": _text_rows,
    "csv": _csv_rows,
    "json": _json_rows,
}
