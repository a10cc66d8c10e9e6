"""A merged student is a stock model: tools made for stock models work on it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertForMaskedLM
from wid_models import logits

from wid_hf import WidConfig, get_wid_model

INPUTS = {"input_ids": torch.arange(84).view(7, 12) % 50 + 5}


@pytest.fixture
def student(tiny_bert: BertForMaskedLM) -> BertForMaskedLM:
    config = WidConfig(hidden_size=12, intermediate_size=24)
    return get_wid_model(tiny_bert, config, calibration_data=[INPUTS]).merge_and_unload().eval()


def test_lora_trains_on_a_student_and_merges_into_it(student: BertForMaskedLM) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    lora = get_peft_model(student, LoraConfig(r=4, target_modules=["query", "value", "dense"], lora_dropout=0.0))
    trained = [p for p in lora.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in student.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(60):
        loss = lora(**INPUTS, labels=INPUTS["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    expected = logits(lora.eval(), INPUTS)
    merged = lora.merge_and_unload()
    assert type(merged) is BertForMaskedLM and torch.allclose(logits(merged, INPUTS), expected, atol=1e-5)
    moved = [name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and all(any(part in name for part in ("query", "value", "dense")) for name in moved)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*")
def test_a_student_quantizes_to_int8(student: BertForMaskedLM) -> None:
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(student), {nn.Linear}, dtype=torch.qint8)
    expected, found = logits(student, INPUTS), logits(small, INPUTS)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, expected)
    assert "qint8" in str(small.bert.encoder.layer[0].intermediate.dense.weight().dtype)


# What inductor imports first says so of itself, unless something else imported it before.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_student_compiles(student: BertForMaskedLM, backend: str) -> None:
    expected = logits(student, INPUTS)
    compiled = torch.compile(student, backend=backend, fullgraph=True)
    assert torch.allclose(logits(compiled, INPUTS), expected, atol=1e-5)
