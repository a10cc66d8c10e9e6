"""PEFT's own doors and ours lead to the same model; the student is planned once."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertForMaskedLM
from wid_models import IDS, logits, progressive, trained

import wid_hf.adapter.tuner
from wid_hf import (
    ConfigError,
    WidConfig,
    WidModel,
    get_wid_model,
)


def test_pefts_own_door_gives_the_same_model(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=24, init="identity"))
    again = get_peft_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=24, init="identity"))
    assert isinstance(again, PeftModel) and isinstance(again.base_model, WidModel)
    assert torch.equal(logits(again, IDS), logits(wid, IDS))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in wid.named_parameters()}


def test_the_config_given_is_not_changed(tiny_bert: BertForMaskedLM) -> None:
    config = WidConfig(hidden_size=12, init="identity")
    before = dict(vars(config))
    get_wid_model(tiny_bert, config)
    assert vars(config) == before


def test_another_methods_config_is_refused(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(ConfigError, match="takes a WidConfig, not a LoraConfig"):
        get_wid_model(tiny_bert, LoraConfig())


@pytest.mark.parametrize("schedule", ["narrow", "progressive"])
def test_a_student_is_planned_once_and_its_config_holds_what_is_declared(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch, schedule: Any
) -> None:
    plan, planned = wid_hf.adapter.tuner.plan_sizes, []
    monkeypatch.setattr(
        wid_hf.adapter.tuner, "plan_sizes", lambda *given, **more: planned.append(plan(*given, **more)) or planned[-1]
    )
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, schedule=schedule), example_inputs=IDS)
    assert [wid.base_model.student_plan] == planned
    held = wid.peft_config["default"]
    assert set(vars(held)) == set(vars(WidConfig(hidden_size=12)))
    assert set(held.example_inputs) == {"arguments", "tensors"}


def test_a_copy_of_a_wid_model_has_a_teacher_and_a_plan_of_its_own(tiny_bert: BertForMaskedLM) -> None:
    wid = progressive(tiny_bert)
    other = deepcopy(wid)
    assert other.base_model.teacher is not tiny_bert
    trained(other)
    assert not other.base_model.is_wide and wid.base_model.is_wide
    assert other.merge_and_unload().config.hidden_size == 12


@pytest.mark.parametrize("given", [torch.ones(2, 3), [1], "input_ids", 3])
def test_example_inputs_that_are_no_dictionary_are_refused_in_words(tiny_bert: BertForMaskedLM, given: Any) -> None:
    with pytest.raises(ConfigError, match="is not a dictionary of keyword arguments"):
        get_wid_model(tiny_bert, WidConfig(hidden_size=12), example_inputs=given)
    config = WidConfig(hidden_size=12)
    config.example_inputs = given
    with pytest.raises(ConfigError, match="is not a dictionary of keyword arguments"):
        get_peft_model(tiny_bert, config)
