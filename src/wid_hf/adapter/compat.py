"""Refuses a PEFT that wid_hf cannot work with.

Takes nothing; `wid_hf` runs it before its other modules import PEFT. The hooks by which an adapter is saved and loaded
are not public, and another version of PEFT might not call them; so names are checked as well as the version.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from packaging.version import Version

from ..errors import WidError

OLDEST = "0.21"  # as in pyproject.toml
USED = {
    "peft": ("PeftConfig", "PeftModel", "get_peft_model"),
    "peft.mapping": ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING"),
    "peft.tuners.tuners_utils": ("BaseTuner", "BaseTunerLayer"),
}
HOOKS = ("_get_adapter_state_dict", "_remap_adapter_state_dict_for_load", "_remove_adapter_name_from_key")


def refuse_unsupported_peft() -> None:
    """Refuse an installed PEFT that cannot be used.

    Raises:
        WidError: it is older than `OLDEST`, or lacks a name; says which version was found and what to install.
    """
    found = version("peft")
    if Version(found) < Version(OLDEST):
        raise WidError(f'wid_hf needs peft >= {OLDEST}, found {found}: run `pip install --upgrade "peft>={OLDEST}"`.')
    if lacking := [*_lacking()]:
        raise WidError(
            f"wid_hf needs {', '.join(lacking)}, which peft {found} does not have. It is known to work with peft "
            f"{OLDEST}: run `pip install peft~={OLDEST}.0`, or a newer wid_hf."
        )


def _lacking() -> list[str]:
    places = [(module, name) for module, names in USED.items() for name in names]
    lacking = [f"{module}.{name}" for module, name in places if not hasattr(_module(module), name)]
    tuner = getattr(_module("peft.tuners.tuners_utils"), "BaseTuner", None)
    return lacking + [f"BaseTuner.{hook}" for hook in HOOKS if not hasattr(tuner, hook)]


def _module(name: str) -> object:
    try:
        return import_module(name)
    except ImportError:
        return None


refuse_unsupported_peft()
