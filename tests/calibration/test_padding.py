"""Padding is left out wherever a mask goes with a tensor: token by token, choice by choice, frame by frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from wid_hf import WidConfig, get_wid_model
from wid_hf.calibration.padding import Padding

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])


def numbered(*shape: int) -> Tensor:
    """A tensor whose rows are numbered."""
    rows = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
    return rows[:, None].expand(-1, 2).reshape(*shape, 2)


def kept(padding: Padding, *shape: int) -> list[int]:
    return padding.rows(numbered(*shape))[:, 0].long().tolist()


def test_rows_of_a_mask_are_found_in_every_layout() -> None:
    padding = Padding({"attention_mask": MASK})
    attended = MASK.flatten().nonzero()[:, 0].tolist()
    assert kept(padding, 3, 4) == kept(padding, 12) == attended
    assert kept(padding, 4, 3) == MASK.T.flatten().nonzero()[:, 0].tolist()
    assert kept(padding, 3, 4, 5) == [5 * row + inner for row in attended for inner in range(5)]
    assert kept(padding, 3) == [0, 1, 2]  # one pooled position a text
    assert kept(padding, 3, 9) == list(range(27))


def test_every_choice_of_a_text_is_a_row_of_the_mask() -> None:
    choices = torch.stack([MASK, 1 - MASK], dim=1)  # (3 texts, 2 choices, 4 positions)
    assert kept(Padding({"attention_mask": choices}), 6, 4) == choices.flatten().nonzero()[:, 0].tolist()


def test_labels_are_the_mask_of_a_decoder_that_is_fed_by_them() -> None:
    labels = torch.tensor([[5, 6, 7, 8, 9], [5, 6, -100, -100, -100], [5, -100, -100, -100, -100]])
    padding = Padding({"attention_mask": MASK, "labels": labels})
    assert kept(padding, 3, 5) == [0, 1, 2, 3, 4, 5, 6, 10]
    assert kept(padding, 3, 4) == MASK.flatten().nonzero()[:, 0].tolist()
    same_shape = Padding({"attention_mask": MASK, "labels": labels[:, :4]})
    assert kept(same_shape, 3, 4) == [0, 1, 2, 4, 5]  # nobody knows whose positions these are: what both have


def test_frames_of_sound_take_the_mask_of_their_samples() -> None:
    samples = (torch.arange(40) < torch.tensor([[40], [24], [8]])).long()
    padding = Padding({"input_values": torch.randn(3, 40), "attention_mask": samples})
    assert kept(padding, 3, 10) == [*range(10), *range(10, 16), *range(20, 22)]
    assert kept(padding, 3, 40) == samples.flatten().nonzero()[:, 0].tolist()
    text = Padding({"input_ids": torch.ones(3, 40), "pixel_values": torch.randn(3, 3, 8, 8), "attention_mask": samples})
    assert kept(text, 3, 10) == list(range(30))  # patches of an image have no part in the mask of a text


def positions(teacher: PreTrainedModel, config: WidConfig, data: list[dict[str, Any]]) -> dict[str, int]:
    """How many positions every read was fitted to."""
    sites = get_wid_model(teacher, config, calibration_data=data).base_model.calibration.inputs
    return {site.weight: site.positions for site in sites}


SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def test_wav2vec2_is_fitted_to_the_frames_that_are_heard() -> None:
    teacher = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            **{**SMALL, "vocab_size": 20},
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            pad_token_id=0,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
    ).eval()
    lengths = torch.tensor([800, 480, 260, 140])
    mask = (torch.arange(800) < lengths[:, None]).long()
    data = [{"input_values": torch.randn(4, 800) * mask, "attention_mask": mask} for _ in range(4)]
    seen = positions(teacher, WidConfig(hidden_size=12), data)
    heard = 4 * int(teacher._get_feat_extract_output_lengths(lengths).sum())
    queries = seen["wav2vec2.encoder.layers.0.attention.q_proj.weight"]
    assert abs(queries - heard) <= 16 < 4 * 4 * 38 - heard  # a frame at most at the end of each sound


def seq2seq(kind: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    sizes = {
        "vocab_size": 60,
        "d_model": 24,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    if kind == "whisper":
        more = {"suppress_tokens": None, "begin_suppress_tokens": None}
        config = WhisperConfig(**sizes, **more, num_mel_bins=8, max_source_positions=16, max_target_positions=16)
        return WhisperForConditionalGeneration(config).eval(), {"input_features": torch.randn(8, 8, 32)}
    config = M2M100Config(**sizes, max_position_embeddings=32)
    return M2M100ForConditionalGeneration(config).eval(), {"input_ids": torch.randint(5, 60, (8, 11))}


@pytest.mark.parametrize("kind", ["whisper", "m2m100"])
def test_a_class_that_shifts_its_labels_itself_is_fitted_to_labelled_positions(kind: str) -> None:
    teacher, inputs = seq2seq(kind)
    labels = torch.randint(5, 60, (8, 6))
    labels[:4, 2:] = -100
    config = WidConfig(overrides={"d_model": 12})
    seen = positions(teacher, config, [{**inputs, "labels": labels}] * 3)
    assert seen["model.decoder.layers.0.self_attn.q_proj.weight"] == 3 * (4 * 2 + 4 * 6)
    given = {"decoder_input_ids": teacher._shift_right(labels)} if hasattr(teacher, "_shift_right") else None
    shifted = torch.cat([torch.ones(8, 1, dtype=torch.long), labels[:, :-1].clamp(min=0)], dim=1)
    mask = torch.cat([torch.ones(8, 1, dtype=torch.long), labels[:, 1:].ne(-100).long()], dim=1)
    data = [{**inputs, **(given or {"decoder_input_ids": shifted}), "decoder_attention_mask": mask}] * 3
    assert positions(teacher, config, data) == seen


def test_multiple_choice_leaves_the_padding_of_every_choice_out() -> None:
    teacher = BertForMultipleChoice(BertConfig(**SMALL, max_position_embeddings=32)).eval()
    ids = torch.randint(5, 60, (8, 3, 10))
    mask = torch.ones_like(ids)
    mask[:, 1, 4:] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    model = get_wid_model(teacher, WidConfig(hidden_size=12), example_inputs=example, calibration_data=[example])
    seen = {site.weight: site.positions for site in model.base_model.calibration.inputs}
    assert seen["bert.encoder.layer.0.intermediate.dense.weight"] == 8 * (10 + 4 + 10)
    assert seen["bert.pooler.dense.weight"] == 24
