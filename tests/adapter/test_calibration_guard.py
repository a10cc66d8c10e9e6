"""A model whose start waits for calibration data is neither trained nor merged by accident."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import BertForMaskedLM
from wid_models import BATCHES, IDS, logits, loop

from wid_hf import (
    WidConfig,
    WidError,
    get_wid_model,
)


def test_a_merge_without_the_calibration_that_was_asked_for_is_refused(tiny_bert: BertForMaskedLM) -> None:
    wid = get_peft_model(tiny_bert, WidConfig(hidden_size=12, selection="variance", init="identity"))
    with pytest.raises(WidError, match="has seen no calibration data"):
        wid.merge_and_unload()
    wid.base_model.calibrate([IDS])
    assert wid.merge_and_unload().config.hidden_size == 12


def test_a_model_that_waits_for_calibration_warns_at_its_first_forward(tiny_bert: BertForMaskedLM) -> None:
    wid = get_peft_model(tiny_bert, WidConfig(hidden_size=12))
    with pytest.warns(UserWarning, match=r"init='calibrated'.*has seen no calibration data\. Call model\.calibrate"):
        wid(**IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wid(**IDS)
    identity = get_peft_model(tiny_bert, WidConfig(hidden_size=12, init="identity"))
    assert torch.equal(logits(wid, IDS), logits(identity, IDS))


def test_an_uncalibrated_model_is_not_trained_in_vain(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12))
    wid.train()
    with pytest.raises(
        WidError, match=r"calibrate.*calibration_data.*WidTrainer.*WidCallback.*init=\"identity\".*Nothing"
    ):
        loop(wid)
    with torch.no_grad(), pytest.warns(UserWarning, match="only selects indices"):
        wid(**IDS)
    wid.base_model.calibrate(BATCHES)
    loop(wid)
    assert wid.merge_and_unload().config.hidden_size == 12


def test_a_loaded_adapter_that_was_calibrated_trains(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    get_wid_model(deepcopy(tiny_bert), WidConfig(hidden_size=12), calibration_data=BATCHES).save_pretrained(tmp_path)
    loop(PeftModel.from_pretrained(tiny_bert, tmp_path, is_trainable=True).train())


def test_force_merges_what_is_there(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12))
    with pytest.warns(UserWarning, match=r"Merged by force.*no calibration data"):
        student = wid.merge_and_unload(force=True)
    identity = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity")).merge_and_unload()
    assert torch.equal(logits(student, IDS), logits(identity, IDS))


@pytest.mark.parametrize("part", ["", "bert", "bert.encoder.layer.0.output.dense"])
def test_no_backward_pass_goes_through_an_uncalibrated_model_in_any_mode(tiny_bert: BertForMaskedLM, part: str) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12)).eval()
    module = wid.base_model.model.get_submodule(part)
    inputs = IDS if "dense" not in part else {"input": torch.randn(2, 48)}

    def backward() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = module(**inputs)
        (output if isinstance(output, Tensor) else output[0]).square().mean().backward()

    with pytest.raises(WidError, match=r"has seen no calibration data.*Nothing was trained"):
        backward()
    wid.base_model.calibrate(BATCHES, reset=True)
    backward()
