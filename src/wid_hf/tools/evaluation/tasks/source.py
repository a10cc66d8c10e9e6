"""Rows of labelled tasks, from local files or from the Hub.

Takes a declaration of where the rows are; gives one dataset for each split, with the columns of the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import Dataset, Value

from ....errors import DataError
from ....hub.paths import expanded
from ....rows import load_rows
from .task import Rows

NEEDED = ("train", "dev")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
class Origin:
    """The names in one place of a task: our name of each split and column -> its name there."""

    splits: Mapping[str, str]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """A task's files and its dataset on the Hub.

    Attributes:
        folder: inside the data folder, with one file for each split.
        files: splits by the stems of their files, columns by the keys of their rows; other splits than `train` and
            `dev` may be missing.
        hub: name and configuration of the dataset on the Hub; None where there is none.
        hub_names: its splits and columns.
    """

    folder: str
    files: Origin
    hub: tuple[str, str | None] | None = None
    hub_names: Origin = field(default_factory=lambda: Origin({}, {}))

    def load(self, folder: Path | None) -> Rows:
        """Return the splits, with our names of columns, from `folder` if it has them, else from the Hub."""
        return from_files_or_hub(self.folder, folder, self._from_files, self.hub, self._from_hub)

    def _from_files(self, folder: Path) -> Rows:
        found = {split: _file(folder, stem) for split, stem in self.files.splits.items()}
        for split in NEEDED:
            if found[split] is None:
                raise DataError(
                    f"{folder} has no file {self.files.splits[split]}.jsonl (or {', '.join(SUFFIXES[1:])}), which the "
                    f"split {split!r} is read from. Add it, or move the folder away to load the task from the Hub."
                )
        return {split: self._read(path) for split, path in found.items() if path is not None}

    def _read(self, path: Path) -> Dataset:
        rows = load_rows(str(path))
        for ours, name in self.files.columns.items():
            kind, kinds = (int | float, "number") if ours == "label" else (str, "string")
            expected = f"Expected: a {kinds} under each key of {', '.join(self.files.columns.values())}."
            if not isinstance(rows.features.get(name, Value("null")), Value):
                raise DataError(f"{path} has values of several kinds, or of several parts, as {name!r}. {expected}")
            for number, value in enumerate(rows[name] if name in rows.column_names else [None], start=1):
                if not isinstance(value, kind):
                    raise DataError(f"row {number} of {path} has {value!r} as {name!r}. {expected}")
        return _named(rows, self.files.columns)

    def _from_hub(self, splits: Mapping[str, Dataset]) -> Rows:
        rows = {}
        for split, name in self.hub_names.splits.items():
            rows[split] = _named(splits[name], self.hub_names.columns)
        return rows


def from_files_or_hub(
    name: str,
    folder: Path | None,
    files: Callable[[Path], Rows],
    hub: tuple[str, str | None] | None,
    reading: Callable[[Mapping[str, Dataset]], Rows],
) -> Rows:
    """Return `files(folder / name)` where that folder exists, else `reading` of the Hub's dataset.

    Raises:
        DataError: neither can be loaded.
    """
    folder = Path(expanded(folder)) if folder is not None else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no data folder {folder}. Name another with folder=, or leave it out for the Hub.")
    if folder is not None and (folder / name).is_dir():
        return files(folder / name)
    here = f"{folder} has no folder {name}" if folder is not None else f"no data folder with {name} was named"
    advice = f"Give a data folder that holds {name} (folder=, or WID_HF_DATA; docs/evaluation.md describes its layout)"
    if hub is None:
        raise DataError(f"{here}, and this task is not on the Hub. {advice}.")
    try:
        return reading(datasets.load_dataset(*hub))
    except Exception as error:  # the loaders of `datasets` raise errors of every class
        dataset = hub[0] if hub[1] is None else f"{hub[0]} ({hub[1]})"
        raise DataError(
            f"{here}, and {dataset} cannot be loaded from the Hub: {error}. {advice}, or check the network."
        ) from error


def _named(rows: Dataset, columns: Mapping[str, str]) -> Dataset:
    """Return `rows` with our names of `columns`, and no others."""
    spelled = {there: ours for ours, there in columns.items() if there != ours}
    return rows.select_columns(list(columns.values())).rename_columns(spelled)


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / (stem + suffix)).is_file()), None)
