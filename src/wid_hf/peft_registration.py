"""Makes PEFT know `WidConfig` and `WidModel` under the name "WID".

`peft.utils.register_peft_method` insists that the name is in PEFT's own enum, which we must not touch;
its three public mappings take a string as well. Nothing else in wid_hf knows of them.
"""

from __future__ import annotations

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .config import PEFT_TYPE, WidConfig
from .tuner import WidModel


def register() -> None:
    """Enter the config class, the tuner class and the parameter prefix; a second call changes nothing."""
    PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = WidConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = WidModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = WidModel.prefix
