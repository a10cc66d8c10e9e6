"""A real decoder, SmolLM2-135M: proved on its own weights, trained, merged, reloaded, generating."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wid_hf import WidConfig, get_wid_model
from wid_hf.coupling import verify
from wid_hf.planning.student_plan import trace_teacher

SENTENCES = [
    "The city council met on Tuesday to talk about the new bridge over the river.",
    "The bridge has been closed since the spring, when the river rose over its banks.",
]


@pytest.mark.slow
def test_the_plan_of_smollm2_holds_on_its_real_weights(smollm2_dir: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    seen, further = trace_teacher(teacher)
    assert further == []
    layers = teacher.config.num_hidden_layers
    # The residual stream, and for each layer key/value heads, widths of values and the feed-forward width.
    assert verify(teacher, seen) >= 1 + 3 * layers


@pytest.mark.slow
def test_smollm2_becomes_narrower_trains_merges_exactly_reloads_and_generates(
    smollm2_dir: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    teacher = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    wanted = WidConfig(hidden_size=384, intermediate_size=768, head_strategy="head", init="identity")
    wid = get_wid_model(teacher, wanted)
    ids = tokenizer(SENTENCES, return_tensors="pt", padding=True).input_ids
    optimizer = torch.optim.AdamW(wid.parameters(), lr=1e-4)
    losses = []
    for _ in range(20):
        loss = wid(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    student = wid.merge_and_unload().eval()
    config = student.config
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (384, 768, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (6, 2)
    wid.eval()
    assert torch.equal(wid(input_ids=ids).logits, student(input_ids=ids).logits)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    weights = again.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in student.state_dict().items())
    assert torch.allclose(again(input_ids=ids).logits, student(input_ids=ids).logits, atol=1e-4)
    words = again.generate(ids[:1, :5], max_new_tokens=8, do_sample=False)
    assert words.shape == (1, 13)
