"""Rows as a task needs them: a column for each role, and no row in which one is missing.

Takes rows, the columns of their roles and, from a task, why a row is of no use to it; gives the rows that are left and
how many were left out for which reason. Called by `compress` and `load_texts`, after `find_columns`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, Value

from ..errors import DataError
from ..progress_bar import progress_bar
from .images import CheckedImage
from .named_files import from_folder
from .roles import Kind, Role, features_of
from .sounds import StoredSound, samples

CHECKED = 1000  # rows that are in memory at a time
NO_CLASS = -1  # label of rows without one where labels are classes, as the test splits of GLUE have it
Reason = Callable[[Mapping[str, Any]], str | None]


@dataclass
class Prepared:
    """Rows for a task, and what became of the others.

    Attributes:
        rows: a column for each role that was found, under the role's name. Images are decoded when a row is taken;
            sounds are their bytes or path (`sounds.samples`).
        columns: role -> the source's column.
        read: rows that were looked at; of a stream, so far.
        dropped: reason -> rows that were left out for it, the same.
    """

    rows: Dataset | IterableDataset
    columns: dict[str, str]
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def record(self) -> dict[str, Any]:
        """Return the column of each role, how many rows were read, and why some were left out, for reports."""
        return {"columns": self.columns, "read": self.read, "dropped": dict(self.dropped), "words": self.words()}

    def told(self) -> str:
        """Return which columns are read, and `words`."""
        columns = ", ".join(f"{role} from {column!r}" for role, column in self.columns.items())
        return f"{columns}. {self.words()}"

    def words(self) -> str:
        """Return how many rows are left out, and why, in one sentence."""
        read = f"{self.read:,} rows" + (" read so far" if isinstance(self.rows, IterableDataset) else "")
        count = self.dropped.total()
        reasons = ", ".join(f"{why} ({times:,})" for why, times in self.dropped.most_common())
        if not count:
            return f"None of {read} is left out."
        return f"{count:,} of {read} {'is' if count == 1 else 'are'} left out: {reasons}."


def prepare(
    rows: Dataset | IterableDataset,
    columns: Mapping[str, str],
    roles: Sequence[Role],
    why_unusable: Reason | None = None,
    *,
    carried: Collection[str] = (),
    folder: Path | None = None,
    source: str = "the source",
) -> Prepared:
    """Return the rows with the columns of their roles alone, without those that lack something.

    A row is left out if a text is blank, a value is missing or an image or sound cannot be read, and if `why_unusable`
    says so. Of a stream, rows are looked at when they are read, and counted once however often that is.

    Args:
        rows: as `load_rows` returns them.
        columns: role -> column, as `find_columns` returns it.
        roles: at least those of `columns`.
        why_unusable: returns why the task cannot use a row of roles, such as "there is no class 7", or None.
        carried: roles whose values go along as they are: no row is left out for one of them.
        folder: in which relative paths begin, where a column names files; by default the working directory.
        source: where the rows come from, for errors.

    Raises:
        DataError: no row is left.
    """
    kinds = {role.name: role.holds for role in roles if role.name in columns}
    # First of all: what a stream does later, it does with what is decoded now.
    rows = _with_files(rows, {columns[name]: kind for name, kind in kinds.items()}, folder)
    rows = _renamed(rows, {name: columns[name] for name in kinds})
    classes = {name for name, feature in rows.features.items() if isinstance(feature, ClassLabel)}

    reason = _reason({name: kind for name, kind in kinds.items() if name not in carried}, classes, why_unusable)
    made = Prepared(rows, dict(columns))
    made.rows = _kept_of_stream(rows, reason, made) if isinstance(rows, IterableDataset) else _kept(rows, reason, made)
    if next(iter(made.rows), None) is None:
        why = f"No row of {source} can be used. {made.words()}" if made.read else f"{source} holds no row."
        raise DataError(f"{why} Give rows in which nothing is missing.")
    return made


def _with_files(
    rows: Dataset | IterableDataset, columns: Mapping[str, Kind], folder: Path | None
) -> Dataset | IterableDataset:
    """Return rows whose columns of images, sounds or their paths hold `CheckedImage` and `StoredSound`."""
    for column, kind in columns.items():
        if kind not in ("image", "audio"):
            continue
        if rows.features is None:
            rows = rows.cast(features_of(rows))
        now = rows.features[column]
        feature = CheckedImage(mode=getattr(now, "mode", None)) if kind == "image" else StoredSound()
        is_path = isinstance(now, Value)
        rows = from_folder(rows, column, feature, folder) if is_path else rows.cast_column(column, feature)
    return rows


def _reason(kinds: Mapping[str, Kind], classes: Collection[str], why_unusable: Reason | None) -> Reason:
    """Return what says why a row cannot be used."""

    def reason(row: Mapping[str, Any]) -> str | None:
        for name, kind in kinds.items():
            value = None if name in classes and row[name] == NO_CLASS else row[name]
            if (lack := _LACKS[kind](value)) is not None:
                return lack.format(name.replace("_", " "))
        return why_unusable({name: row[name] for name in kinds}) if why_unusable is not None else None

    return reason


def _renamed(rows: Dataset | IterableDataset, columns: Mapping[str, str]) -> Dataset | IterableDataset:
    """Return `rows` with these columns alone, under the names of their roles."""
    rows = rows.select_columns(list(columns.values()))
    renamed = {column: name for name, column in columns.items() if column != name}
    if set(renamed.values()) & set(columns.values()):  # a role has the name of another role's column
        aside = {column: f"role {name}" for column, name in renamed.items()}
        rows, renamed = rows.rename_columns(aside), {aside[column]: name for column, name in renamed.items()}
    rows = rows.rename_columns(renamed) if renamed else rows
    return rows if rows.features is not None else rows.cast(features_of(rows))


def _kept(rows: Dataset, reason: Reason, made: Prepared) -> Dataset:
    """Return the rows that can be used, and count the others."""
    unusable = []
    at_once = 1 if any(isinstance(feature, CheckedImage) for feature in rows.features.values()) else CHECKED
    batches = progress_bar(rows.iter(at_once), "Checking rows", -(-len(rows) // at_once))
    for values in chain.from_iterable(zip(*batch.values(), strict=True) for batch in batches):
        why = reason(dict(zip(rows.column_names, values, strict=True)))
        if why is not None:
            unusable.append(made.read)
            made.dropped[why] += 1
        made.read += 1
    return rows.select(np.delete(np.arange(len(rows)), unusable)) if unusable else rows


def _kept_of_stream(rows: IterableDataset, reason: Reason, made: Prepared) -> IterableDataset:
    """Return the stream of rows that can be used; it counts the others when they are read for the first time."""

    def is_usable(row: dict[str, Any], number: int) -> bool:
        why = reason(row)
        if number >= made.read:
            made.read = number + 1
            if why is not None:
                made.dropped[why] += 1
        return why is None

    return rows.filter(is_usable, with_indices=True)


def _lack_of_text(value: Any) -> str | None:
    return None if value is not None and value.strip() else "the {} is blank"


def _is_missing(value: Any) -> bool:
    """CSV has NaN, which is unlike itself, where a number is missing."""
    return value is None or value != value  # noqa: PLR0124


def _lack_of_entry(values: list[Any]) -> str | None:
    return "one of the {} is missing" if any(map(_is_missing, values)) else None


def _lack_of_entries(value: Any) -> str | None:
    return _lack_of_entry(value) if value else "there are no {}"


def _lack_of_words(value: Any) -> str | None:
    if not isinstance(value, list):
        return _lack_of_text(value)
    return "a word of the {} is missing" if any(map(_is_missing, value)) else _lack_of_text(" ".join(value))


def _lack_of_answers(value: Any) -> str | None:
    """A question that has no answer says so by empty lists."""
    if value is None or value["text"] is None or value["answer_start"] is None:
        return "there are no {}"
    return _lack_of_entry([*value["text"], *value["answer_start"]])


def _lack_of_label(value: Any) -> str | None:
    return "there is no {}" if _is_missing(value) else None


def _lack_of_several(value: Any) -> str | None:
    """No label of several may hold for a row, which an empty list says."""
    if isinstance(value, list):
        return "a {} is missing" if any(map(_is_missing, value)) else None
    return _lack_of_label(value)


def _lack_of_image(value: Any) -> str | None:
    if isinstance(value, Exception):
        return "the {} cannot be read"
    return "there is no {}" if value is None else None


def _lack_of_sound(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return "there is no {}"
    try:
        heard, _ = samples(value)
    except DataError:
        return "the {} cannot be read"
    return None if len(heard) else "the {} is empty"


_LACKS: dict[Kind, Callable[[Any], str | None]] = {
    "text": _lack_of_text,
    "texts": _lack_of_entries,
    "words": _lack_of_words,
    "label": _lack_of_label,
    "labels": _lack_of_entries,
    "several": _lack_of_several,
    "image": _lack_of_image,
    "audio": _lack_of_sound,
    "answers": _lack_of_answers,
}
