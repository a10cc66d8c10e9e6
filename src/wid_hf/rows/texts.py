"""Texts of a source, for tools that need nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from .inner import with_inner_columns
from .prepare import prepare
from .roles import TEXT, find_columns, named_columns
from .source import load_rows, source_names


def load_texts(
    source: str | Sequence[str], *, column: str | Sequence[str] | None = None, split: str = "train"
) -> Dataset:
    """Return all texts of `source` in order, as a dataset with the one column `text`; blank ones are left out.

    Args:
        source: as for `load_rows`.
        column: which column holds the texts, as `NAME` or `text=NAME`; by default as `find_columns` finds it.
        split: of a folder or a named dataset.

    Raises:
        DataError: the source is missing, unreadable or empty, or the column is not clear.
    """
    named = named_columns(column or ())
    rows = with_inner_columns(load_rows(source, split=split), named.values())
    said = ", ".join(source_names(source))
    return prepare(rows, find_columns(rows, [TEXT], named, said), [TEXT], source=said).rows
