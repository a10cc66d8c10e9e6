"""What a model makes of batches, without gradients. Called by objectives and `compress`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..inputs import Batch
from ..progress_bar import progress_bar
from ..scores.eval_mode import eval_mode
from ..training.imitation import TARGETS


def inputs_of(batch: Mapping[str, Any]) -> Batch:
    """Return what a forward takes of a batch: its tensors, labels left out."""
    return {name: value for name, value in batch.items() if isinstance(value, Tensor) and name not in TARGETS}


def outputs_of(model: Any, batches: Sequence[Batch]) -> Iterator[Any]:
    """Yield the output of each batch, on the model's device; labels are left out."""
    with eval_mode(model) as device:
        for batch in progress_bar(batches, "Scoring"):
            yield model(**{name: tensor.to(device) for name, tensor in inputs_of(batch).items()})


def logits_of(model: Any, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Yield the logits of each batch, float32 on the CPU; labels are left out."""
    return (output.logits.float().cpu() for output in outputs_of(model, batches))
