"""Settings that lie in adapter_config.json as a dictionary: a `WidSchedule`, a `CalibrationConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


def from_saved(kind: type[T], stated: Mapping[str, Any]) -> T:
    """Return the instance of the dataclass `kind` from which `dataclasses.asdict` made `stated`.

    Raises:
        ConfigError: an unknown name, or what the constructor refuses.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a type variable cannot say "dataclass"
    if unknown := sorted(set(stated) - set(names)):
        raise ConfigError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(names)}.")
    return kind(**stated)
