"""Orders batches and divides them by their texts. Called by the tuner, `moment_pass`, `candidates` and refinement."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

from torch import Tensor

from .batches import Batch
from .padding import NO_LABEL

GOLDEN = (sqrt(5) - 1) / 2  # its multiples, modulo one, are spread evenly however many there are


def spread(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches in an order whose first part, however long, comes from everywhere in the given order.

    Moments and trials are of some of the texts only, and data of several kinds is often one kind after the other.
    """
    return [batch for _, batch in sorted(enumerate(batches), key=lambda each: each[0] * GOLDEN % 1)]


def texts_in(batch: Batch) -> int:
    """Return how many texts (pictures, sounds) a batch has."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 1)


def first_tokens(batches: Sequence[Batch], count: int) -> Sequence[Batch]:
    """Return the first texts, which hold about `count` tokens; `batches` themselves where they are not known to.

    Args:
        batches: prepared for a model.
        count: tokens as in `tokens_in`.
    """
    total, texts = tokens_in(batches), sum(map(texts_in, batches))
    return parted(batches, ceil(count / total * texts))[0] if total > count else batches


def tokens_in(batches: Sequence[Batch]) -> int:
    """Return how many tokens are not padding, of the encoder or the decoder, whichever has fewer; 0 without ids."""
    return sum(map(_tokens_in, batches))


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


def _tokens_in(batch: Batch) -> int:
    counts = [int(batch["labels"].ne(NO_LABEL).sum())] if "labels" in batch else []
    for ids in ("input_ids", "decoder_input_ids"):
        if ids in batch:
            mask = batch.get(ids.replace("input_ids", "attention_mask"))
            counts.append(batch[ids].numel() if mask is None else int(mask.bool().sum()))
    return min(counts) if "input_ids" in batch else 0


def _rows(value: Any, start: int, stop: int, count: int) -> Any:
    is_by_text = isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and len(value) == count)
    return value[start:stop] if is_by_text else value
