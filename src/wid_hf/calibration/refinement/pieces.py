"""Divides the calibration data into small pieces: some to train on, one in ten to stop by.

Takes batches, gives batches of fewer texts. Called by `layer_by_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError
from ..batches import Batch
from ..division import can_be_cut, cut, texts_in

POSITIONS = 1024  # of a piece, about
HELD_OUT = 10  # one piece of so many is held out


@dataclass(frozen=True)
class Pieces:
    """Batches of a few texts each.

    Attributes:
        all: every piece, in the order of the data.
        training: numbers of those that are trained on.
        held_out: numbers of those that only decide when to stop.
        texts: texts in all.
    """

    all: tuple[Batch, ...]
    training: tuple[int, ...]
    held_out: tuple[int, ...]
    texts: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Pieces:
        """Divide `batches` into pieces of about 1,024 positions, of which a tenth is held out, at least one.

        A batch with a tensor that has no row for each text stays whole.

        Raises:
            DataError: there are fewer than two pieces, so that nothing can be held out.
        """
        # Tensors that were made in inference mode cannot take part in a backward pass; copies can.
        with torch.inference_mode(False):
            batches = [{name: _plain(value) for name, value in batch.items()} for batch in batches]
        texts = sum(map(texts_in, batches))
        made = tuple(piece for batch in batches for piece in _divided(batch, texts))
        if len(made) < 2:
            raise DataError(
                "Refinement holds out one text in ten to know when to stop, but the calibration data holds one text "
                "or one batch that cannot be divided. Give more texts, or set CalibrationConfig.refine=0 (--refine 0)."
            )
        held_out = set(range(HELD_OUT - 1, len(made), HELD_OUT)) or {len(made) - 1}
        return cls(made, tuple(at for at in range(len(made)) if at not in held_out), tuple(sorted(held_out)), texts)

    def in_a_step(self, texts: int) -> int:
        """Return how many pieces to train on make about `texts` texts."""
        return min(len(self.training), ceil(texts * len(self.all) / max(self.texts, 1)))


def can_be_divided(batches: Sequence[Batch]) -> bool:
    """Return whether there are two pieces or more: some to train on, and some to hold out."""
    texts = sum(map(texts_in, batches))
    return sum(1 for batch in batches for _ in _divided(batch, texts)) > 1


def _plain(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _divided(batch: Batch, texts: int) -> Iterator[Batch]:
    """Yield pieces of a batch."""
    if not can_be_cut(batch):
        yield batch
        return
    most = max(1, min(POSITIONS // _length(batch), texts // HELD_OUT))
    for start in range(0, texts_in(batch), most):
        yield cut(batch, start, start + most)


def _length(batch: Mapping[str, Any]) -> int:
    """Return the positions of a text: of ids or masks; without any, as of an image in patches."""
    numbers = [value for value in batch.values() if isinstance(value, Tensor) and not value.is_floating_point()]
    return max((tensor.shape[-1] for tensor in numbers if tensor.ndim > 1), default=POSITIONS // 8)
