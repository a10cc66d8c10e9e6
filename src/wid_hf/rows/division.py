"""Which rows are held out from training, and which are scored. Takes all rows, gives parts; called by tools."""

from __future__ import annotations

from datasets import Dataset, IterableDataset

from ..errors import DataError

SHUFFLE_SEED = 0  # of the random rows if not all are scored


def drawn(rows: Dataset, count: int | None) -> Dataset:
    """Return `count` rows, drawn at random but the same in every call; all if there are no more, or it is None."""
    if count is None or count >= len(rows):
        return rows
    return rows.shuffle(seed=SHUFFLE_SEED).select(range(count))


def hold_out(
    rows: Dataset | IterableDataset, validation: int, seed: int
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Divide into (train, validation) with `validation` rows in the second.

    Rows on disk are divided at random, and the same seed gives the same parts. Of a stream, the first rows are held
    out: its length is not known, and no row is read twice.

    Raises:
        DataError: a part would get no row.
    """
    if isinstance(rows, IterableDataset):
        return _first_held_out(rows, validation)
    if len(rows) < 2:
        raise DataError(
            f"{len(rows)} {'row is' if len(rows) == 1 else 'rows are'} too few to hold some out for validation: at "
            "least 2 are needed. Give more rows, or separate ones to score on with validation=."
        )
    if not 0 < validation < len(rows):
        raise DataError(
            f"cannot hold out {validation} of {len(rows)} rows. Legal: 1 to {len(rows) - 1}. "
            "Hold out fewer validation rows, or give more rows."
        )
    parts = rows.train_test_split(test_size=validation, seed=seed)
    return parts["train"], parts["test"]


def _first_held_out(rows: IterableDataset, validation: int) -> tuple[IterableDataset, IterableDataset]:
    train, held_out = rows.skip(validation), rows.take(validation)
    if validation < 1 or next(iter(train), None) is None:
        raise DataError(
            f"cannot hold out {validation} rows of a stream that has no more. Legal: 1 or more, and fewer than there "
            "are. Hold out fewer validation rows, or give separate ones to score on with validation=."
        )
    return train, held_out
