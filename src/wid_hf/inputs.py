"""Tiny example inputs for any `PreTrainedModel`: just enough to run its forward once.

Takes a model, gives keyword arguments. `student` traces with them unless the user gave others.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

BATCH, LENGTH = 3, 7  # odd and different, so that neither is mistaken for a model's own dimension


def example_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Return keyword arguments for one small forward of `model`, on its device.

    Tokens are `(3, 7)` integers below the vocabulary size; images `(3, channels, height, width)`.
    """
    accepted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    inputs: dict[str, Any] = {main: _images(model) if main == "pixel_values" else _tokens(model)}
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = _tokens(model)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return {name: v.to(model.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}


def _tokens(model: PreTrainedModel) -> Tensor:
    # Counting up from the end keeps clear of padding and other special tokens, which sit at the start.
    vocabulary = model.get_input_embeddings().num_embeddings
    return vocabulary - 1 - torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % (max(vocabulary // 2, 1))


def _images(model: PreTrainedModel) -> Tensor:
    size = getattr(model.config, "image_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model.config, "num_channels", 3)
    values = torch.arange(BATCH * channels * height * width, dtype=torch.float32).sin()
    return values.view(BATCH, channels, height, width).to(model.dtype)
