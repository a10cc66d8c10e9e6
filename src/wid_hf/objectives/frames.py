"""How many frames a model makes of a sound. Called when rows are checked: a sound without a frame is of no use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..inputs import Inputs, SoundInputs
from ..rows.roles import AUDIO


def frames_of(teacher: PreTrainedModel, inputs: Inputs, row: Mapping[str, Any]) -> int | None:
    """Return the frames of a row's sound, 0 if it is too short; None where they are not counted, or there is no sound.

    Raises:
        DataError: the sound cannot be read.
    """
    frames = getattr(teacher, "_get_feat_extract_output_lengths", None)
    if not isinstance(inputs, SoundInputs) or frames is None or teacher.main_input_name != "input_values":
        return None
    return max(0, int(frames(torch.tensor(len(inputs.heard(row[AUDIO.name]))))))
