"""The scores that a model gives every row, or every token. Called by the objectives of classifiers and taggers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..inputs import Batch
from ..progress_bar import progress_bar
from ..scores.eval_mode import eval_mode


def logits_of(model: Any, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Yield the logits of each batch, float32 on the CPU; labels are left out."""
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            yield model(**inputs).logits.float().cpu()
