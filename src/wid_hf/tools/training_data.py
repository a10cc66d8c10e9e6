"""The rows of one run: what trains, what is held out, and what became of the source.

Takes sources, settings and an objective; gives features to train on and to score on. Called by `compress`, and for rows
alone by `evaluate_as_is`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset
from numpy import size

from ..errors import DataError, WidError, WidWarning
from ..objectives import Objective
from ..rows import Prepared, Role, find_columns, hold_out, load_rows, named_columns, prepare
from ..rows.digest import digest
from ..rows.inner import with_inner_columns
from ..rows.source import folder_of, source_names
from .recipe import CompressSettings

Source: TypeAlias = str | Sequence[str] | Dataset | IterableDataset  # names of rows, or rows

SHARE = 5  # at most one row in this many is held out
# A stream is shuffled among this many rows, or among as many as need so much memory.
SHUFFLED, SHUFFLED_BYTES = 10_000, 2**27
FIRST = 100  # rows of a stream by which it is known again
NUMBER = 32  # bytes that Python needs for one in a list


@dataclass(frozen=True)
class TrainingData:
    """Features of the rows of one run.

    Attributes:
        train: of rows to train and calibrate on, a stream if the settings say so.
        held_out: of rows to score on.
        held_out_rows: these rows themselves, by role.
        sources: the rows that were read, by where they come from.
    """

    train: Dataset | IterableDataset
    held_out: Dataset
    held_out_rows: Dataset
    sources: dict[str, Prepared]

    def record(self) -> dict[str, dict[str, Any]]:
        """Return for each source the column of each role, how many rows were read, and why some were left out."""
        return {source: made.record() for source, made in self.sources.items()}

    def digests(self) -> dict[str, str]:
        """Return for each source the `digest` of its rows; of a stream, of its first ones."""
        return {
            source: digest(made.rows if isinstance(made.rows, Dataset) else _first(made.rows, FIRST))
            for source, made in self.sources.items()
        }

    def words(self) -> Iterator[str]:
        """Yield for each source which columns are read, and how many rows are left out."""
        for source, made in self.sources.items():
            yield f"{source}: {made.told()}"


def load_training_data(
    train: Source, objective: Objective, settings: CompressSettings, samples: int, held_out: Source | None = None
) -> TrainingData:
    """Load, prepare and divide the rows of one run.

    Args:
        train: the source to train on, or its rows.
        objective: what a row must hold.
        settings: of the run.
        samples: rows to calibrate on, which are enough if nothing trains.
        held_out: rows to score on; if None those that the settings name, or a part of `train`.

    Raises:
        DataError: a source cannot be read, or does not hold what the objective needs.
        MissingExtraError: figures of labels need packages that are not installed.
    """
    labels = settings.label_weight != 0
    load = partial(load_prepared, objective=objective, column=settings.column, streaming=settings.streaming)
    prepared = load(train, settings.split, labels=labels)
    sources, rows = {said(train): prepared}, prepared.rows
    validation = settings.validation if held_out is None else held_out
    if validation is not None:
        other = load(validation, settings.validation_split, labels=labels)
        sources |= {f"{said(validation)} (validation)": other}
        kept = other.rows
    else:
        first = rows if isinstance(rows, Dataset) else [*islice(rows, SHARE * settings.validation_texts)]
        count = min(settings.validation_texts, max(len(first) // SHARE, 1))
        try:
            rows, kept = hold_out(rows, count, settings.seed)
        except DataError as few:
            raise DataError(f"{said(train)}: {few} {prepared.words()}" if prepared.dropped else str(few)) from few
    if not settings.steps and isinstance(rows, Dataset):
        rows = rows.shuffle(seed=settings.seed).select(range(min(samples, len(rows))))
    kept = _drawn(kept, settings.validation_texts, settings.seed)
    features = objective.features(rows if labels else _without(_labels_alone(objective), rows), settings.max_length)
    if isinstance(features, IterableDataset):
        features = _shuffled(features, settings.seed)
    scored = scored_features(kept, objective, settings)
    objective.check_figures(scored)  # before any work
    return TrainingData(features, scored, kept, sources)


def scored_features(rows: Dataset, objective: Objective, settings: CompressSettings) -> Dataset:
    """Return features of held-out rows, cut as `settings` say.

    Raises:
        DataError: nothing in them can be read.
    """
    make = objective.features if settings.label_weight != 0 else partial(_scored, objective=objective)
    return make(rows, max_length=settings.max_length)


def load_prepared(
    source: Source,
    split: str,
    objective: Objective,
    *,
    column: str | Sequence[str] = (),
    streaming: bool = False,
    labels: bool = True,
) -> Prepared:
    """Return the rows of a source that an objective can use, with labels if there are some.

    Args:
        source: rows, or their name.
        split: of a dataset or a folder.
        objective: what a row must hold.
        column: one or several words such as `label=class`.
        streaming: whether rows that are named become a stream.
        labels: whether rows are left out whose label is missing or of no use; otherwise labels go along as they are.

    Raises:
        DataError: the source cannot be read, or does not hold what the objective needs.
    """
    if isinstance(source, Dataset | IterableDataset):
        rows, folder = source, None
    else:
        rows, folder = load_rows(source, split=split, streaming=streaming), folder_of(source)
    named = named_columns(column)
    rows = with_inner_columns(rows, named.values())
    target = _labels_alone(objective)
    roles = [*objective.roles, *([target] if target is not None else [])]
    carried = () if labels or target is None else (target.name,)
    found = find_columns(rows, roles, named, said(source))
    return prepare(rows, found, roles, objective.why_unusable, carried=carried, folder=folder, source=said(source))


def _labels_alone(objective: Objective) -> Role | None:
    """Return the role of labels, None if there is none or it is for more than a loss on labels."""
    target = objective.target
    return None if target is None or target in objective.roles else target


def _without(labels: Role | None, rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    if labels is None or labels.name not in (rows.column_names or ()):
        return rows
    return rows.remove_columns(labels.name)


def _scored(rows: Dataset, objective: Objective, max_length: int) -> Dataset:
    """Return features of held-out rows whose labels nobody has looked at; with these if all of them can be used."""
    labels = _labels_alone(objective)
    unlabelled = _without(labels, rows)
    if labels is None or unlabelled is rows:
        return objective.features(rows, max_length)
    columns, roles = {name: name for name in rows.column_names}, [*objective.roles, labels]
    try:
        checked = prepare(rows, columns, roles, objective.why_unusable, source="The held-out part")
        if not checked.dropped:
            return objective.features(checked.rows, max_length)
        why = checked.words()
    except WidError as error:
        why = str(error)
    warnings.warn(f"The held-out rows are scored without their labels. {why}", WidWarning, stacklevel=3)
    return objective.features(unlabelled, max_length)


def said(source: Source) -> str:
    """Return what a source is called: its names, or that rows came without one."""
    return "rows from Python" if isinstance(source, Dataset | IterableDataset) else ", ".join(source_names(source))


def _drawn(rows: Dataset | IterableDataset, count: int, seed: int) -> Dataset:
    """Return `count` rows, or all, as a table: drawn, for folders and many files have one class after the other.

    Of a stream they are the first ones.
    """
    if not isinstance(rows, Dataset):
        return _first(rows, count)
    return rows.shuffle(seed=seed).select(range(count)) if len(rows) > count else rows


def _first(rows: IterableDataset, count: int) -> Dataset:
    """Return the first `count` rows of a stream, or all, as a table."""
    return Dataset.from_list([*islice(rows, count)], features=rows.features)


def _shuffled(features: IterableDataset, seed: int) -> IterableDataset:
    """Return the stream, whose next row is one drawn from the next ones; fewer of them where rows are large."""
    needed = sum(map(_bytes, next(iter(features)).values()))
    return features.shuffle(seed=seed, buffer_size=min(SHUFFLED, max(1, SHUFFLED_BYTES // needed)))


def _bytes(value: Any) -> int:
    """Return about how much memory a value of a row needs: numbers, an image or a stored sound."""
    if hasattr(value, "getbands"):  # an image, as PIL has it
        return int(value.width * value.height * len(value.getbands()))
    return len(value["bytes"] or ()) if isinstance(value, dict) else NUMBER * int(size(value))
