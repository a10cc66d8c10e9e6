"""A first line that was taken for names of columns and is a row: of CSV files without a header.

Takes rows and the columns that they seem to have; says whether the names look like values. Called by `find_columns`
where no column has a usual name: there such a row would be lost, and nothing would say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset, Value

LOOKED_AT = 100  # rows
WORDS = 4  # so many in a name are a sentence


def names_look_like_a_row(rows: Dataset | IterableDataset, features: Mapping[str, Any], text: str) -> bool:
    """Return whether the names of columns look like values of these.

    A number above values that are numbers, a word that its column has again, or a sentence above texts does.

    Args:
        rows: of which the first are read.
        features: what each column holds.
        text: the column of texts.
    """
    kinds = {name: feature.dtype for name, feature in features.items() if isinstance(feature, Value)}
    return len(text.split()) >= WORDS or _has_number(kinds) or _comes_again(rows, kinds)


def _has_number(kinds: Mapping[str, str]) -> bool:
    """Return whether a number stands above numbers, but for those that pandas writes above columns without names."""
    if [*kinds] == [str(at) for at in range(len(kinds))]:
        return False
    return any(dtype.startswith(("int", "float")) and _is_number(name) for name, dtype in kinds.items())


def _comes_again(rows: Dataset | IterableDataset, kinds: Mapping[str, str]) -> bool:
    strings = [name for name, dtype in kinds.items() if "string" in dtype]
    return any(row[name] == name for row in islice(rows.select_columns(strings), LOOKED_AT) for name in strings)


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
