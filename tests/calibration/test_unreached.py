"""Parts of a teacher that calibration data does not reach, and weights that are whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from distilled_models import seeded
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForSequenceClassification, MraConfig, MraForSequenceClassification

from wid_hf import WidConfig, get_wid_model

TEXT: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def ids(count: int = 16, length: int = 20) -> dict[str, Tensor]:
    drawn = torch.randint(5, 40, (count, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": drawn, "attention_mask": torch.ones_like(drawn)}


def test_the_vision_part_of_a_model_that_is_calibrated_on_texts_alone_stays_a_selection() -> None:
    config = Gemma3Config(
        text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=50, boi_token_index=51,
        eoi_token_index=52,
    )  # fmt: skip
    teacher = seeded(Gemma3ForSequenceClassification, config)
    sizes = {"text_config": {"hidden_size": 12}, "vision_config": {"hidden_size": 12, "intermediate_size": 24}}
    model = get_wid_model(teacher, WidConfig(overrides=sizes))
    model.base_model.calibrate([ids()])
    student = model.merge_and_unload()
    scores = student(**ids()).logits
    assert torch.isfinite(scores).all()
    assert torch.isfinite(torch.stack([weight.abs().max() for weight in student.parameters()])).all()
    queries = "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"
    assert student.state_dict()[queries].abs().sum() > 0


def test_a_model_with_whole_numbers_among_its_weights_is_calibrated() -> None:
    config = MraConfig(
        vocab_size=60, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, block_per_row=1, pad_token_id=0,
    )  # fmt: skip
    model = get_wid_model(seeded(MraForSequenceClassification, config), WidConfig(hidden_size=12, intermediate_size=24))
    model.base_model.calibrate([ids()])
    assert torch.isfinite(model.merge_and_unload()(**ids()).logits).all()
