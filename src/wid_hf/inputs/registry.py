"""Which inputs a model takes: found from the first argument of its forward. Called by `compress`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .images import ImageInputs
from .inputs import Inputs
from .sounds import SoundInputs
from .stored import StoredInputs
from .texts import TextInputs

# By transformers' `main_input_name`.
STORED: dict[str, type[StoredInputs]] = {
    "pixel_values": ImageInputs,
    "input_values": SoundInputs,
    "input_features": SoundInputs,
}
READABLE = {"input_ids": TextInputs, **STORED}


def find_inputs(teacher: PreTrainedModel, processor: Any) -> Inputs:
    """Return the inputs of `teacher`: of images or sounds if its `main_input_name` says so, otherwise of texts.

    Args:
        teacher: the model.
        processor: the tokenizer, image processor, feature extractor or processor that belongs to it.
    """
    main = teacher.main_input_name
    return STORED[main](processor, main) if main in STORED else TextInputs(processor)
