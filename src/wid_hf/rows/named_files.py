"""Columns that name files of images or sounds, as a table of labels often does. Called by `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, Image, IterableDataset


def from_folder(
    rows: Dataset | IterableDataset, column: str, feature: Image | Audio, folder: Path | None
) -> Dataset | IterableDataset:
    """Return `rows` with files in the place of paths in `column`, as `feature` has them.

    Args:
        rows: their features are known.
        column: of paths or URLs.
        feature: of the files.
        folder: in which relative paths begin; by default the working directory.
    """
    base = Path(folder or "").absolute()

    def store(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {column: [_stored(base, name) if name else None for name in columns[column]]}

    features = Features({**rows.features, column: feature})
    if isinstance(rows, Dataset):
        return rows.map(store, batched=True, features=features)
    return rows.map(store, batched=True).cast(features)  # a stream takes what comes out with `features` for decoded


def _stored(base: Path, name: str) -> dict[str, Any]:
    """Return what `datasets` stores of a file at a path; URLs stay as they are."""
    return {"bytes": None, "path": name if "://" in name else str(base / name)}
