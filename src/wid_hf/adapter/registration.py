"""Registers `WidConfig` and `WidModel` with PEFT under the name "WID".

`peft.utils.register_peft_method` accepts only names of PEFT's own enum, which wid_hf must not change; its three public
mappings accept any string. No other module of wid_hf uses them.
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
        WidError: the name is used already, by a second copy of wid_hf or by another method.
    """
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType.WID)
    if known is not None and _file(known) != _file(WidModel):
        raise WidError(
            f'PEFT has another method with the name "{PeftType.WID.value}" already, from {_file(known)}; this one is '
            f"from {_file(WidModel)}. "
            "Import only one of them; if both are copies of wid_hf, uninstall one, or remove its folder from sys.path."
        )
    PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.WID] = WidConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.WID] = WidModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.WID] = WidModel.prefix


def _file(tuner: type[BaseTuner]) -> str:
    # Of a method: another module of the same name may have replaced the class's module in sys.modules.
    return tuner.inject_adapter.__code__.co_filename
