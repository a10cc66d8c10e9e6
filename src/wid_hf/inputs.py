"""Tiny example inputs for any `PreTrainedModel`: just enough to run its forward once.

Takes a model, gives keyword arguments. `student` traces with them unless the user gave others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

SAMPLES = 4000  # a quarter of a second: several frames after the usual convolutions
BATCH, LENGTH = 3, 7  # odd and different, so that neither is mistaken for a model's own dimension


def example_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Return keyword arguments for one small forward of `model`, on its device.

    Tokens are `(3, 7)` integers below the vocabulary size, images `(3, channels, height, width)`, sound
    `(3, samples)` or `(3, bins, frames)` as the config says.
    """
    accepted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    inputs: dict[str, Any] = {main: _INPUTS.get(main, _tokens)(model)}
    if "decoder_input_ids" in accepted and main != "decoder_input_ids":
        inputs["decoder_input_ids"] = _tokens(model)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return {name: v.to(model.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}


def _tokens(model: PreTrainedModel) -> Tensor:
    # Counting down from the end keeps clear of padding and other special tokens, which sit at the start.
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return vocabulary - 1 - torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % (max(vocabulary // 2, 1))


def _images(model: PreTrainedModel) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None) or 32
    height, width = (size, size) if isinstance(size, int) else size
    return _waves(model, BATCH, getattr(config, "num_channels", 3), height, width)


def _sound(model: PreTrainedModel) -> Tensor:
    """Raw samples, or the spectrogram that the config describes."""
    config = model.config
    bins = getattr(config, "num_mel_bins", None)
    if bins and getattr(config, "max_source_positions", None):
        return _waves(model, BATCH, bins, 2 * config.max_source_positions)  # Whisper halves the frames
    if bins and getattr(config, "max_length", None):
        return _waves(model, BATCH, config.max_length, bins)
    if width := getattr(config, "feature_projection_input_dim", None):
        return _waves(model, BATCH, LENGTH * LENGTH, width)
    return _waves(model, BATCH, SAMPLES)


def _waves(model: PreTrainedModel, *shape: int) -> Tensor:
    return torch.arange(prod(shape), dtype=torch.float32).sin().view(shape).to(model.dtype)


_INPUTS: dict[str, Callable[[PreTrainedModel], Tensor]] = {
    "pixel_values": _images,
    "input_values": _sound,
    "input_features": _sound,
}
