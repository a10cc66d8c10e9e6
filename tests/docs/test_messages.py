"""The messages that a user is likeliest to meet name what was given and what is legal, and what they advise works."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import typer
from architectures import ARCHITECTURES
from peft import get_peft_model
from transformers import BertConfig

from wid_hf import CalibrationConfig, WidConfig, WidError, get_wid_model, plan_student
from wid_hf_cli.app import app

BERT = ARCHITECTURES["bert"]


def message(action: Callable[[], Any]) -> str:
    with pytest.raises(WidError) as refusal:
        action()
    return str(refusal.value)


def refusal(family: str, **words: Any) -> str:
    row = ARCHITECTURES[family]
    return message(lambda: get_wid_model(row.build(), WidConfig(**words), example_inputs=row.inputs))


def assert_tells(told: str, *facts: str) -> None:
    assert [fact for fact in facts if fact not in told] == [], told


@pytest.mark.parametrize(("strategy", "nearest"), [("dim", [28, 32]), ("head", [24, 36])])
def test_a_width_that_heads_do_not_fill_is_told_with_the_nearest_legal_ones(strategy: Any, nearest: list[int]) -> None:
    told = refusal("bert", hidden_size=30, head_strategy=strategy)
    assert_tells(told, "BertConfig", "hidden_size=30", {"dim": "4 heads", "head": "steps of 12"}[strategy])
    advised = [int(number) for number in re.findall(r"\d+", told.split("nearest legal")[1])]
    assert advised == nearest
    for size in advised:
        plan_student(BERT.build(), WidConfig(hidden_size=size, head_strategy=strategy), inputs=BERT.inputs)


def test_a_misspelt_size_is_told_with_the_sizes_that_there_are() -> None:
    told = refusal("bert", overrides={"hiden_size": 24})
    assert_tells(told, "BertConfig has no hiden_size")
    listed = re.findall(r"\w+", told.split("its sizes are")[1])
    assert {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"} <= set(listed)
    assert all(isinstance(getattr(BertConfig(), name), int) for name in listed)


def test_a_wider_student_is_told_its_size_and_the_teachers() -> None:
    told = refusal("bert", hidden_size=96, intermediate_size=48)
    assert_tells(told, "BertConfig", "hidden_size=96", "teacher's 48")
    assert "intermediate_size=48" not in told  # which is legal


def test_a_student_that_is_its_teacher_is_told_to_ask_for_less() -> None:
    assert_tells(refusal("bert", hidden_size=48), "BertConfig", "equals the teacher's", "smaller size")


def test_a_smaller_vocabulary_is_told_by_every_weight_that_forbids_it() -> None:
    first, *places, advice = refusal("bert", hidden_size=24, overrides={"vocab_size": 50}).splitlines()
    assert_tells(first, "BertForMaskedLM", "hidden_size=24", "vocab_size=50", '"auto"')
    weights = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
    for place, weight in zip(places, weights, strict=True):
        assert_tells(place, f"`{weight}` axis 0", "101 cannot become 50", "looked up by number")
        assert_tells(place, "aten.embedding.default in `bert.embeddings.word_embeddings`")
    assert_tells(advice, "teacher's sizes", "Architectures")


def test_narrower_heads_under_rotary_positions_are_told_the_strategy_that_keeps_their_width() -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 48}
    told = refusal("modernbert", **sizes, head_strategy="dim")
    first, place, *_ = told.splitlines()
    assert_tells(first, "hidden_size=24", "intermediate_size=48", '"dim"')
    assert_tells(place, "`model.rotary_emb`", "6 cannot become 3", "_attention_inv_freq`", "`model.layers.")
    assert_tells(told, '"head"')
    row = ARCHITECTURES["modernbert"]
    plan_student(row.build(), WidConfig(**sizes, head_strategy="head"), inputs=row.inputs)


def test_a_config_with_nothing_in_it_is_told_which_arguments_there_are() -> None:
    told = message(WidConfig)
    assert_tells(told, "WidConfig", "no size", "hidden_size", "intermediate_size")
    assert {"hidden_size", "intermediate_size"} <= {field.name for field in fields(WidConfig)}


def test_a_teacher_that_peft_has_wrapped_is_told_how_to_get_a_plain_one() -> None:
    wrapped = get_wid_model(BERT.build(), BERT.config("dim"))
    assert_tells(message(lambda: get_wid_model(wrapped, BERT.config("dim"))), "PeftModel", "merge_and_unload()")
    get_wid_model(wrapped.merge_and_unload(), WidConfig(hidden_size=12), example_inputs=BERT.inputs)


def test_a_teacher_without_weights_is_told_how_to_load_it() -> None:
    told = message(lambda: get_wid_model(BERT.build().to("meta"), BERT.config("dim")))
    assert_tells(told, "meta device", "from_pretrained(", "device_map='meta'", "init_empty_weights()")


def test_a_merge_without_calibration_data_is_told_every_way_out() -> None:
    wid = get_wid_model(BERT.build(), BERT.config("dim", init="calibrated"))
    told = message(wid.merge_and_unload)
    assert_tells(told, "init='calibrated'", "selection='pivots'", "Nothing was merged")
    assert_tells(told, "calibrate(", "calibration_data", "WidTrainer", "WidCallback")
    assert_tells(told, 'init="identity"', 'selection="first"', "force=True")
    with pytest.warns(UserWarning, match="Merged by force"):
        wid.merge_and_unload(force=True)
    get_wid_model(BERT.build(), BERT.config("dim", init="identity", selection="first")).merge_and_unload()


def test_calibration_data_with_too_few_tokens_is_told_how_many_it_takes() -> None:
    wid = get_peft_model(BERT.build(), BERT.config("dim", init="calibrated")).base_model
    told = message(lambda: wid.calibrate([{"input_ids": torch.arange(20).view(2, 10) + 5}]))
    assert_tells(told, "20 tokens", "48 indices", "at least 49", "CalibrationConfig.samples", "--calibration-samples")
    assert "samples" in {field.name for field in fields(CalibrationConfig)}
    command = typer.main.get_command(app).commands["compress"]  # type: ignore[attr-defined]
    assert any("--calibration-samples" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize("rows", [0, 2])
def test_calibration_data_of_nothing_but_padding_is_told_what_to_pass(rows: int) -> None:
    wid = get_peft_model(BERT.build(), BERT.config("dim", init="calibrated")).base_model
    padding = {name: torch.zeros(rows, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    told = message(lambda: wid.calibrate([padding] if rows else []))
    assert_tells(told, "no batch", "padding", "DataLoader")
