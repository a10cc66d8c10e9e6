"""Refuses calibration data that cannot be used, and says why.

Takes what a user passes as calibration data; gives a list of batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..calibration.batches import Batch
from ..config import WidConfig
from ..errors import ConfigError, DataError


def checked_batches(batches: Any) -> list[Batch]:
    """Return the batches as a list.

    Raises:
        DataError: a batch is not a dictionary of keyword arguments.
    """
    if isinstance(batches, Mapping):
        raise DataError("The calibration data is one batch; pass an iterable of batches, such as [batch].")
    try:
        found = list(batches)
    except TypeError as cause:
        raise DataError(
            f"The calibration data is a {type(batches).__name__}; pass an iterable of dictionaries of keyword "
            "arguments for the teacher's forward."
        ) from cause
    if strange := [type(batch).__name__ for batch in found if not isinstance(batch, Mapping)]:
        raise DataError(
            f"A batch of the calibration data is a {strange[0]}; pass dictionaries of keyword arguments "
            "for the teacher's forward, such as a tokenizer or a data collator makes."
        )
    return found


def refuse_unused_data(config: WidConfig) -> None:
    """Refuse calibration data if the start does not depend on data.

    Raises:
        ConfigError: the message says what to set.
    """
    if not config.needs_data:
        raise ConfigError(
            'calibration data is given but init="identity" with selection="first" does not use it; '
            'set init="calibrated".'
        )
