"""Rows as their source has them: of files, of folders and of datasets by name.

Takes a source as a user types it; gives what the builders of `datasets` make of it, with the source's own columns: a
table on disk that is mapped into memory, or a stream. Called by commands and objectives, before `find_columns`.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, DatasetDict, Features, IterableDataset, Value
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import DataError
from ..hub.paths import expanded
from .faults import UNREADABLE, opened, refuse_faults
from .sounds import SoundFolder

# Builders of `datasets` by the suffix of their files, and how they are called.
BUILDERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    **dict.fromkeys(ImageFolder.EXTENSIONS, "imagefolder"),
    **dict.fromkeys(AudioFolder.EXTENSIONS, "audiofolder"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    ".txt": {"encoding": "utf-8-sig", "features": Features({"text": Value("string")})},
    ".tsv": {"sep": "\t"},
}
SPECIAL = {*OPTIONS, ".csv"}  # suffixes that decide how a builder is called
SEPARATORS = ",;\t|"  # in CSV files; the first one where the header has none
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
CHECKED = 1000  # rows of text that are in memory at a time
OF_FOLDERS = {"imagefolder", "audiofolder"}
LEGAL_SOURCES = (
    "a .txt, .jsonl, .json, .csv, .tsv, .parquet or .arrow file (text, JSON and CSV also with .gz, .bz2, .xz or "
    ".zst), several of one kind or a pattern such as 'data/*.jsonl', a folder of such files, of images or of sounds, "
    "or a dataset name such as 'ag_news' or 'name:config'"
)


def load_rows(
    source: str | Sequence[str], *, split: str = "train", streaming: bool = False
) -> Dataset | IterableDataset:
    """Return all rows of `source`, in order, with its own columns.

    Text files have one row per line and the one column `text`; a folder of images has `image`, one of sounds `audio`,
    and both have `label` where images or sounds lie in one folder for each class, or the columns of their metadata
    file. `docs/data.md` has all of it.

    Args:
        source: a file, several (a sequence, or one string with commas or `*`), a folder, or the name of a dataset,
            `name` or `name:config`.
        split: of a folder or a named dataset. Files have only one, whatever its name; `train[:1000]` takes a part.
        streaming: return a stream, of which only what is iterated over is read.

    Raises:
        DataError: the source is missing, unreadable or empty, or holds files of several kinds.
    """
    names = source_names(source)
    path = Path(names[0]) if len(names) == 1 else None
    if path is not None and path.is_dir():
        return _of_folder(path, split, streaming)
    if files := _files(names):
        builder, suffix = _one_kind(files, ", ".join(names))
        splits = {split.partition("[")[0]: [glob.escape(str(file.absolute())) for file in files]}
        if builder == "audiofolder":
            made: DatasetBuilder = SoundFolder(data_files=splits)
        else:
            made = datasets.load_dataset_builder(builder, data_files=splits, **_options(suffix, files))
        return _built(made, files, split, streaming)
    return _named(names[0], split, streaming)


def local_paths(source: str | Sequence[str]) -> list[Path]:
    """Return the files or the folder that `source` names; none if it is the name of a dataset.

    Raises:
        DataError: a file is missing.
    """
    names = source_names(source)
    return [Path(names[0])] if len(names) == 1 and Path(names[0]).is_dir() else _files(names)


def folder_of(source: str | Sequence[str]) -> Path | None:
    """Return the folder in which all files of `source` lie; None if there is none, as for the name of a dataset."""
    folders = {path if path.is_dir() else path.parent for path in local_paths(source)}
    return folders.pop() if len(folders) == 1 else None


def source_names(source: str | Sequence[str]) -> list[str]:
    """Return the names of files, patterns, folders or datasets in `source`, without `~` and commas.

    Raises:
        DataError: there is none.
    """
    given = [source] if isinstance(source, str) else source
    parts = (part for each in given for part in ([each] if Path(expanded(each)).exists() else each.split(",")))
    names = [expanded(part.strip()) for part in parts if part.strip()]
    if not names:
        raise DataError(f"No source of rows was named. Give {LEGAL_SOURCES}.")
    return names


def _files(names: Sequence[str]) -> list[Path]:
    """Return the files that `names` stand for; none if `names` is one name of a dataset."""
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_file():
            files.append(path)
        elif glob.has_magic(name):
            matches = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute pattern
            found = sorted(match for match in matches if match.is_file())
            if not found:
                raise DataError(f"no file matches {name!r}. Give {LEGAL_SOURCES}.")
            files += found
        elif _suffix(path) in BUILDERS or path.is_dir() or path.is_absolute() or len(names) > 1:
            raise DataError(_not_a_file(path))
    return files


def _not_a_file(path: Path) -> str:
    """Return why `path` is none of several files, nor one of a kind that can be read."""
    if path.is_dir():
        return f"{path} is a folder, which cannot be read together with others. Give its files, as '{path / '*'}'."
    if _suffix(path) in BUILDERS:
        return f"there is no file {path}. Give {LEGAL_SOURCES}."
    return f"{path} is not a file wid_hf can read. Give {LEGAL_SOURCES}."


def _suffix(path: Path) -> str:
    """Return what the name says about the kind of a file: its suffix before that of its compression."""
    name = path.name.lower()
    ending = next((each for each in COMPRESSED if name.endswith(each)), "")
    return Path(name.removesuffix(ending)).suffix


def _one_kind(files: Iterable[Path], source: str) -> tuple[str, str]:
    """Return the builder of `files` and a suffix of its kind; refuse files of several kinds or of none."""
    suffixes: dict[str, Path] = {}
    for file in files:
        suffixes.setdefault(_suffix(file), file)
    for suffix, file in suffixes.items():
        if suffix not in BUILDERS:
            raise DataError(_not_a_file(file))
    kinds = {(BUILDERS[suffix], suffix if suffix in SPECIAL else ""): file for suffix, file in suffixes.items()}
    if len(kinds) > 1:
        raise DataError(
            f"{source} holds files of several kinds: {', '.join(str(file) for file in kinds.values())}. Give files of "
            "one kind, such as 'folder/*.jsonl'."
        )
    return next(iter(kinds))


def _options(suffix: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return how the builder of such files is called; a CSV may have `;`, tabs or `|` between its columns."""
    if suffix != ".csv":
        return OPTIONS.get(suffix, {})
    header = ""
    with suppress(*UNREADABLE), opened(files[0]) as lines:  # the builder will say it
        header = lines.readline()
    return {"sep": max(SEPARATORS, key=header.count)}


def _of_folder(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    """Return the rows of a folder: of a saved dataset, or of files, whose names tell their split as on the Hub."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, split, streaming)
    files = _files_in(folder)
    builder, suffix = _one_kind(files, str(folder))
    if builder == "audiofolder":
        made: DatasetBuilder = SoundFolder.of(folder)
    elif builder == "imagefolder":
        made = datasets.load_dataset_builder(builder, data_dir=str(folder))
    else:  # which leaves out files of no kind, such as a README.md
        made = datasets.load_dataset_builder(str(folder), **_options(suffix, files))
    name = split.partition("[")[0]
    _check_split(folder, name, made.config.data_files)
    own = [Path(file) for file in made.config.data_files[name]]
    return _built(made, own, split, streaming, others=[file for file in files if file not in own])


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if _suffix(path) in BUILDERS and path.is_file()]
    if not files:
        raise DataError(f"{folder} holds no file wid_hf can read. Give {LEGAL_SOURCES}.")
    # Beside images or sounds, files of other kinds are metadata or notes.
    return [path for path in files if BUILDERS[_suffix(path)] in OF_FOLDERS] or files


def _saved(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    """Return the rows that `save_to_disk` wrote."""
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, DatasetDict):
        _check_split(folder, split, saved)
        saved = saved[split]
    return saved.with_format(None).to_iterable_dataset() if streaming else saved.with_format(None)


def _check_split(folder: Path, split: str, splits: Iterable[str]) -> None:
    if split not in splits:
        raise DataError(
            f"{folder} has no split {split!r}. Its splits: {', '.join(map(str, splits))}. Name one of them, or give "
            "the files themselves, which need no split."
        )


def _built(
    builder: DatasetBuilder, files: Sequence[Path], split: str, streaming: bool, others: Sequence[Path] = ()
) -> Dataset | IterableDataset:
    """Return the rows of `files` that `builder` reads; an error says which file and line is wrong, if one is.

    A table is made of all splits at once, so a file of `others` may be the wrong one.
    """
    try:
        if streaming:
            rows = builder.as_streaming_dataset(split=split)
            # An image or a sound that cannot be read is left out later.
            if builder.name not in ("imagefolder", "sounds") and next(iter(rows), None) is None:
                refuse_faults(files, builder.name)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except Exception as error:  # builders raise errors of every class
        refuse_faults(files, builder.name)
        for other in others:
            refuse_faults([other], builder.name)
        cause = error.__cause__ or error
        raise DataError(
            f"{', '.join(map(str, files[:3]))}{' and others' if len(files) > 3 else ''} cannot be read: {cause}. Give "
            "complete files that are of the kind that their suffix says and have the same columns."
        ) from cause
    if builder.name == "text" and not streaming:
        _refuse_zero_bytes(rows, files)
    return rows


def _refuse_zero_bytes(rows: Dataset, files: Sequence[Path]) -> None:
    if any("\0" in text for batch in rows.iter(CHECKED) for text in batch["text"]):
        refuse_faults(files, "text")


def _named(source: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    name, _, config = source.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=streaming)
    except Exception as error:  # the loaders of `datasets` raise errors of every class
        raise DataError(
            f"{source!r} is not a file here, and its split {split!r} cannot be loaded as a dataset: {error}. "
            f"Give {LEGAL_SOURCES}, and check the network and the split."
        ) from error
