"""Calibration watches operations, and flex attention is none that can be watched."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wid_hf import WidConfig, get_wid_model


def test_a_teacher_with_flex_attention_starts_as_one_with_the_usual_attention_and_keeps_it() -> None:
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=16,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    ids = torch.randint(5, 60, (8, 12), generator=torch.Generator().manual_seed(1))
    outputs = []
    for kind in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        teacher = LlamaForCausalLM(config).eval()
        teacher.set_attn_implementation(kind)
        model = get_wid_model(
            teacher, WidConfig(hidden_size=16, head_strategy="head"), calibration_data=[{"input_ids": ids}] * 3
        )
        assert teacher.config._attn_implementation == kind
        student = model.merge_and_unload()
        assert student.config._attn_implementation == kind
        student.set_attn_implementation("sdpa")
        with torch.no_grad():
            outputs.append(student(ids).logits)
    # Weights may differ: singular vectors of heads have no sign.
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-3, rtol=1e-3)
    assert outputs[0].std() > 0.01
