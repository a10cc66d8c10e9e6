"""Prepares a batch of calibration data for a forward.

Takes keyword arguments as a tokenizer or a data collator makes them; gives those for one forward without a loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import DataError

Batch = Mapping[str, Any]

DECODER_INPUTS = {"decoder_input_ids", "decoder_inputs_embeds"}
NOTHING_BUT_PADDING = (
    "The calibration data holds no batch, or nothing but padding. Pass an iterable of keyword dictionaries for the "
    "model's forward, such as a DataLoader."
)
NOT_FINITE = "The {}'s activations on the calibration data are not finite; check its dtype."


def prepared(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return `batch` for one forward: on the model's device, without a cache, and without labels unless needed.

    A sequence-to-sequence model keeps its labels if they are all that it gets for its decoder: it shifts them itself.
    """
    device = next(model.parameters()).device
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    accepted = inspect.signature(model.forward).parameters
    fed = not DECODER_INPUTS.isdisjoint(given)
    if fed or "labels" not in accepted or DECODER_INPUTS.isdisjoint(accepted):
        labels = given.pop("labels", None)
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if labels is not None and shift is not None and not fed and "labels" not in accepted:
            given["decoder_input_ids"] = shift(labels=labels)
    if "use_cache" in accepted:
        given.setdefault("use_cache", False)
    return given


def refuse_batch(model: nn.Module, batch: Batch, error: BaseException) -> NoReturn:
    """Raise the error of a forward, as a refusal of its batch if the batch may be the cause.

    Raises:
        DataError: names the arguments of the batch.
    """
    if not isinstance(error, Exception) or isinstance(error, torch.OutOfMemoryError):
        raise error
    raise DataError(
        f"{type(model).__name__}.forward does not take a batch of the calibration data, with arguments "
        f"{', '.join(batch) or 'none'} ({type(error).__name__}: {error}). A batch is a dictionary of keyword arguments."
    ) from error
