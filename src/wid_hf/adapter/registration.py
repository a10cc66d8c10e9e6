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
from peft.tuners.tuners_utils import BaseTuner

from ..config import PeftType, WidConfig
from ..errors import WidError
from .tuner import WidModel


def register() -> None:
    """Enter the config class, the tuner class and the parameter prefix; a second call changes nothing.

    Raises:
        WidError: the name is taken, by a second copy of wid_hf or by somebody else's method.
    """
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType.WID)
    if known is not None and _file(known) != _file(WidModel):
        raise WidError(
            f'PEFT knows another method as "{PeftType.WID.value}" already, from {_file(known)}; this one is '
            f"{_file(WidModel)}. "
            "Import one of them only; if both are copies of wid_hf, uninstall one, or take its folder off sys.path."
        )
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.WID] = WidConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.WID] = WidModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.WID] = WidModel.prefix


def _file(tuner: type[BaseTuner]) -> str:
    # Of a method: a module of the same name may have taken the place of the one that the class was made in.
    return tuner.inject_adapter.__code__.co_filename
