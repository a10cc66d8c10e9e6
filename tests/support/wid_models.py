"""Tiny teachers, wid models of them, and short trainings of these."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config
from transformers import GPT2LMHeadModel as GPT2

from wid_hf import WidConfig, WidSchedule, get_wid_model
from wid_hf.coupling import Dim

IDS = {"input_ids": torch.arange(21).view(3, 7) + 2}
SCHEDULE = WidSchedule(
    mask_interval=1, mask_increments=2, decay_to_zero_steps=2, selection="norm"
)  # narrow after step 4
BATCHES = [{"input_ids": torch.randint(2, 60, (8, 12), generator=torch.Generator().manual_seed(1))}]


def tiny_gpt2() -> GPT2:
    config = GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    return GPT2(config).eval()


def identity(teacher: Any, **more: Any) -> PeftModel:
    return get_wid_model(teacher, WidConfig(hidden_size=12, init="identity", **more))


def progressive(teacher: Any, **more: Any) -> PeftModel:
    return get_wid_model(teacher, WidConfig(hidden_size=12, schedule=SCHEDULE, **more))


def trained(model: PeftModel, steps: int = 5, inputs: dict[str, Tensor] = IDS) -> None:
    """Train through the whole schedule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    model.wid_begin(steps, optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(**inputs).logits.square().mean().backward()
        optimizer.step()
        model.wid_step(step)
    model.eval()


def logits(model: nn.Module, inputs: dict[str, Any] = IDS) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def tiny_classifier() -> BertForSequenceClassification:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=48)).eval()


def tiny_encoder(**given: Any) -> BertModel:
    """An encoder without a head, whose hidden states a caller sees; the same one at each call."""
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, **given}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertModel(BertConfig(**sizes, intermediate_size=48)).eval()


def random_turn(n: int, k: int) -> Tensor:
    """A map `(k, n)` as calibration would make: rows of zero mean, orthonormal."""
    rows = torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return torch.linalg.qr(rows - rows.mean(0)).Q.T


def stream_of(model: PeftModel) -> Dim:
    """The leaf of the hidden states of a wid model of BERT."""
    plan = model.base_model.plan
    return next(axes[0] for name, axes in plan.axes.items() if name.endswith("embeddings.LayerNorm.weight"))


def turned(model: PeftModel) -> PeftModel:
    """The wid model of BERT as if its start had turned the hidden states by `random_turn`."""
    stream = stream_of(model)
    model.base_model._turn({stream: random_turn(stream.size, model.base_model.plan.size(stream))})
    return model


def loop(model: PeftModel, steps: int = 1) -> None:
    """A bare training loop."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**IDS).logits.square().mean().backward()
        optimizer.step()
