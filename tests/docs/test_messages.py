"""The ten messages that a user is likeliest to meet, in full: what was got, what is legal, what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from peft import get_peft_model

from wid_hf import WidConfig, WidError, get_wid_model

BERT_SIZES = (
    "chunk_size_feed_forward, hidden_size, intermediate_size, max_position_embeddings, num_attention_heads, "
    "num_hidden_layers, type_vocab_size, vocab_size"
)


def message(action: Callable[[], Any]) -> str:
    with pytest.raises(WidError, match=" ") as refusal:
        action()
    return str(refusal.value)


def refusal(family: str, **words: Any) -> str:
    row = ARCHITECTURES[family]
    return message(lambda: get_wid_model(row.build(), WidConfig(**words), example_inputs=row.inputs))


def test_a_width_that_does_not_divide_into_heads() -> None:
    assert refusal("bert", hidden_size=30, head_strategy="dim") == (
        "No student of this BertConfig:\n- hidden_size=30 does not divide into 4 heads; nearest legal: 28, 32"
    )


def test_a_width_that_is_not_a_whole_number_of_heads() -> None:
    assert refusal("bert", hidden_size=30, head_strategy="head") == (
        "No student of this BertConfig:\n"
        "- hidden_size=30 keeps heads of width 12 only in steps of 12; nearest legal: 24, 36"
    )


def test_a_misspelt_size() -> None:
    assert refusal("bert", overrides={"hiden_size": 24}) == (
        f"No student of this BertConfig:\n- BertConfig has no hiden_size; its sizes are {BERT_SIZES}"
    )


def test_a_wider_student() -> None:
    assert refusal("bert", hidden_size=96, intermediate_size=48) == (
        "No student of this BertConfig:\n"
        "- hidden_size=96 is wider than the teacher's 48; a student can only be narrower"
    )


def test_a_student_that_is_its_teacher() -> None:
    assert refusal("bert", hidden_size=48) == (
        "No student of this BertConfig:\n- every size equals the teacher's; give at least one smaller size"
    )


def test_a_smaller_vocabulary() -> None:
    place = "(aten.embedding.default in `bert.embeddings.word_embeddings`)"
    assert refusal("bert", hidden_size=24, overrides={"vocab_size": 50}) == (
        'BertForMaskedLM cannot become a student with hidden_size=24, vocab_size=50 and the head strategy "auto":\n'
        "- `bert.embeddings.word_embeddings.weight` axis 0: 101 cannot become 50, because it is looked up by "
        f"number {place}\n"
        f"- `cls.predictions.bias` axis 0: 101 cannot become 50, because it is looked up by number {place}\n"
        "Leave the dimensions named here at the teacher's sizes. The page Architectures of the documentation explains "
        "these reasons."
    )


def test_narrower_heads_under_rotary_positions() -> None:
    lines = refusal("modernbert", hidden_size=24, intermediate_size=48, head_strategy="dim").splitlines()
    assert "hidden_size=24, intermediate_size=48" in lines[0] and '"dim"' in lines[0]
    # transformers takes them in the order of a set; the first layer uses the one, the second the other.
    kind, layer = ("full", 0) if "full" in lines[1] else ("sliding", 1)
    assert lines[1] == (
        "- `model.rotary_emb` (aten.mul.Tensor): 6 cannot become 3, because it meets buffer "
        f"`model.rotary_emb.{kind}_attention_inv_freq` (aten.mul.Tensor in `model.layers.{layer}.attn`)"
    )
    assert 'the head strategy "head" drops whole heads' in lines[-2]
    assert len(lines) == 10


def test_a_config_with_nothing_in_it() -> None:
    assert message(WidConfig) == (
        "WidConfig: no size is given; set hidden_size, intermediate_size or another size to shrink"
    )


def test_a_teacher_that_peft_has_wrapped() -> None:
    row = ARCHITECTURES["bert"]
    wrapped = get_wid_model(row.build(), row.config("dim"))
    assert message(lambda: get_wid_model(wrapped, row.config("dim"))) == (
        "The teacher is wrapped by PEFT already (PeftModel). Pass the plain model, or call merge_and_unload() "
        "on it first."
    )


def test_a_teacher_without_weights() -> None:
    row = ARCHITECTURES["bert"]
    assert message(lambda: get_wid_model(row.build().to("meta"), row.config("dim"))) == (
        "The teacher is on the meta device and has no weights. Load it with from_pretrained(...) without "
        "device_map='meta' or init_empty_weights()."
    )


def test_a_merge_without_calibration_data() -> None:
    row = ARCHITECTURES["bert"]
    wid = get_wid_model(row.build(), row.config("dim", init="calibrated"))
    assert message(wid.merge_and_unload) == (
        "This model was made with init='calibrated', selection='pivots' but has seen no calibration data. Call "
        "model.calibrate(batches), pass calibration_data to get_wid_model, train with WidTrainer or with WidCallback "
        'in another trainer, or set init="identity" and selection="first". Nothing was merged; force=True merges what '
        "is there."
    )


def test_calibration_data_with_too_few_tokens() -> None:
    row = ARCHITECTURES["bert"]
    wid = get_peft_model(row.build(), row.config("dim", init="calibrated"))
    batch = {"input_ids": torch.arange(20).view(2, 10) + 5}
    assert message(lambda: wid.base_model.calibrate([batch])) == (
        "The calibration data holds 20 tokens that are not padding, but the student's widest layer input has 48 "
        "indices: at least 49 tokens are needed, ten times as many are better. Give more texts, or raise "
        "CalibrationConfig.samples (--calibration-samples)."
    )


def test_calibration_data_of_padding_only() -> None:
    row = ARCHITECTURES["bert"]
    wid = get_peft_model(row.build(), row.config("dim", init="calibrated"))
    padding = {name: torch.zeros(2, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    for batches in ([], [padding]):
        assert message(lambda batches=batches: wid.base_model.calibrate(batches)) == (
            "The calibration data holds no batch, or nothing but padding. Pass an iterable of keyword "
            "dictionaries for the model's forward, such as a DataLoader."
        )
