"""Calibration data that is of no use is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM
from wid_models import IDS

from wid_hf import (
    ConfigError,
    DataError,
    WidConfig,
    get_wid_model,
)


def test_calibration_data_that_nothing_uses_is_refused(tiny_bert: BertForMaskedLM) -> None:
    identity = WidConfig(hidden_size=12, init="identity")
    with pytest.raises(ConfigError, match=r'init="identity" with selection="first" does not use it; set init="calib'):
        get_wid_model(tiny_bert, identity, calibration_data=[IDS])
    with pytest.raises(ConfigError, match="calibration data is given but"):
        get_wid_model(tiny_bert, identity).base_model.calibrate([IDS])


@pytest.mark.parametrize("data", [IDS, [torch.ones(2, 3)], None, ["text"], 3])
def test_calibration_data_of_other_kinds_is_refused_in_words(tiny_bert: BertForMaskedLM, data: Any) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12))
    with pytest.raises(DataError, match=r"The calibration data is|A batch of the calibration data is"):
        wid.base_model.calibrate(data)
