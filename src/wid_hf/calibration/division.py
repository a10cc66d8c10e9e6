"""Divides batches by their texts. Called by `candidates` and by refinement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .batches import Batch


def texts_in(batch: Batch) -> int:
    """Return how many texts (pictures, sounds) a batch has."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 1)


def can_be_cut(batch: Batch) -> bool:
    """Return whether every tensor of a batch has a row for each text."""
    count = texts_in(batch)
    return all(value.ndim and len(value) == count for value in batch.values() if isinstance(value, Tensor))


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Return the texts of a batch from `start` up to `stop`."""
    count = texts_in(batch)
    return {name: _rows(value, start, stop, count) for name, value in batch.items()}


def parted(batches: Sequence[Batch], texts: int) -> tuple[list[Batch], list[Batch]]:
    """Return batches with the first `texts` texts, and batches with all others.

    A batch that cannot be cut goes to the others as a whole, with all that follow it.
    """
    first: list[Batch] = []
    for at, batch in enumerate(batches):
        count = texts_in(batch)
        if count > texts:
            if not (texts and can_be_cut(batch)):
                return first, [*batches[at:]]
            return [*first, cut(batch, 0, texts)], [cut(batch, texts, count), *batches[at + 1 :]]
        first.append(batch)
        texts -= count
    return first, []


def _rows(value: Any, start: int, stop: int, count: int) -> Any:
    is_by_text = isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and len(value) == count)
    return value[start:stop] if is_by_text else value
