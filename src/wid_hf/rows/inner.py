"""Columns inside of others: `translation.de` of rows such as `{"translation": {"de": ..., "en": ...}}`.

Takes rows and names of columns; gives rows in which these are columns of their own. Called before `find_columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, Features, IterableDataset, Translation

from .roles import features_of


def with_inner_columns(rows: Dataset | IterableDataset, names: Iterable[str]) -> Dataset | IterableDataset:
    """Return `rows` with a column more for each of `names` that leads by dots into another; others are left alone."""
    features = features_of(rows)
    missing = {name: name.split(".") for name in names if name not in features}
    found = {name: inner for name, path in missing.items() if (inner := _inside(features, path)) is not None}
    if not found:
        return rows

    def reach(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [_value(value, missing[name][1:]) for value in columns[missing[name][0]]] for name in found}

    return rows.map(reach, batched=True, features=Features({**features, **found}))


def _inside(feature: Any, path: list[str]) -> Any:
    """Return what a path leads to; None if it leads nowhere."""
    for key in path:
        inner = feature.flatten() if isinstance(feature, Translation) else feature
        feature = inner.get(key) if isinstance(inner, Mapping) else None
    return feature


def _value(value: Any, path: list[str]) -> Any:
    for key in path:
        value = value.get(key) if value is not None else None
    return value
