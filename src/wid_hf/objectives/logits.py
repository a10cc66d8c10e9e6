"""The scores that a model gives every text or token. Called by the objectives of classifiers and taggers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..progress_bar import progress_bar
from ..scores.eval_mode import eval_mode
from .objective import Batch


def logits_of(model: Any, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Yield the logits of each batch, float32 on the CPU."""
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            yield model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.float().cpu()
