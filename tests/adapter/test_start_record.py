"""Calibrating again does not undo what was learned, unless asked to."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import BertForMaskedLM
from wid_models import BATCHES, loop

from wid_hf import (
    WidConfig,
    WidError,
    get_wid_model,
)


@pytest.mark.parametrize("how", ["trained", "trained in evaluation mode", "teacher trained", "loaded"])
def test_calibration_does_not_undo_what_was_learned_unless_asked(
    tiny_bert: BertForMaskedLM, tmp_path: Path, how: str
) -> None:
    fresh = deepcopy(tiny_bert)
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12), calibration_data=BATCHES)
    start = {name: p.clone() for name, p in wid.named_parameters()}
    wid.base_model.calibrate(BATCHES)  # nothing was learned yet
    assert all(torch.equal(p, start[name]) for name, p in wid.named_parameters())
    if how == "teacher trained":
        with torch.no_grad():
            tiny_bert.cls.predictions.bias.add_(0.1)
    elif how == "loaded":
        wid.save_pretrained(tmp_path)
        wid = PeftModel.from_pretrained(fresh, tmp_path, is_trainable=True)
    else:
        loop(wid.train(how == "trained"))
    before = {name: p.clone() for name, p in wid.named_parameters()}
    with pytest.raises(WidError, match=r"calibrate\(batches, reset=True\)"):
        wid.base_model.calibrate(BATCHES)
    assert all(torch.equal(p, before[name]) for name, p in wid.named_parameters())
    wid.base_model.calibrate(BATCHES, reset=True)
    if how != "teacher trained":
        assert any(not torch.equal(p, before[name]) for name, p in wid.named_parameters()) or how == "loaded"
