"""The one matrix of architectures that the trace, plan, proof, merge and save tests share.

Each row builds a tiny model with random weights (hidden 48, 4 heads, 2 layers), gives inputs for one forward,
and says how to ask for a student half as wide and by which head strategies that is legal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from wid_hf import Plan, WidConfig, plan_student

VOCABULARY = 101
TOKENS = torch.arange(21).view(3, 7) + 5
COMMON = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Architecture:
    """One family: how to build it, feed it and halve it."""

    name: str
    make: Callable[[], PreTrainedModel]
    halved: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=lambda: {"input_ids": TOKENS})
    strategies: tuple[str, ...] = ("dim", "head")

    def build(self, **attributes: Any) -> PreTrainedModel:
        """Return the tiny model in evaluation mode, every weight drawn from a normal of deviation 0.3."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(std=0.3)
        for name, value in attributes.items():
            setattr(model.config, name, value)
        return model

    def config(self, strategy: str, **others: Any) -> WidConfig:
        """Return what asks for the student half as wide."""
        return WidConfig(**{"init": "identity", **self.halved, **others}, head_strategy=strategy)


def _gpt2() -> PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_embd=48,
            n_head=4,
            n_layer=2,
            vocab_size=VOCABULARY,
            n_positions=40,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _vit() -> PreTrainedModel:
    sizes = {
        key: COMMON[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    }
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=20, patch_size=4, num_labels=3, **sizes))


def _t5() -> PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=48,
            num_heads=4,
            d_kv=12,
            d_ff=96,
            num_layers=2,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
        )
    )


HALF = {"hidden_size": 24, "intermediate_size": 48}
UNCACHED = {"input_ids": TOKENS, "use_cache": False}

ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("bert", lambda: hf.BertForMaskedLM(hf.BertConfig(**COMMON)), HALF),
        Architecture("roberta", lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**COMMON)), HALF),
        Architecture(
            "distilbert",
            lambda: hf.DistilBertForMaskedLM(
                hf.DistilBertConfig(
                    dim=48,
                    n_heads=4,
                    n_layers=2,
                    hidden_dim=96,
                    vocab_size=VOCABULARY,
                    max_position_embeddings=40,
                )
            ),
            {"hidden_size": 24, "overrides": {"hidden_dim": 48}},
        ),
        Architecture(
            "electra",
            lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(embedding_size=32, **COMMON)),
            {**HALF, "overrides": {"embedding_size": 16}},
        ),
        Architecture("mpnet", lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**COMMON)), HALF),
        Architecture(
            "albert",
            lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(embedding_size=32, **COMMON)),
            {**HALF, "overrides": {"embedding_size": 16}},
        ),
        Architecture("gpt2", _gpt2, {"hidden_size": 24}, UNCACHED),
        Architecture(
            "llama",
            lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **COMMON)),
            HALF,
            UNCACHED,
        ),
        Architecture(
            "modernbert",
            lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(global_attn_every_n_layers=2, **COMMON)),
            HALF,
            strategies=("head",),  # rotary positions freeze the width of heads
        ),
        Architecture(
            "t5",
            _t5,
            {"hidden_size": 24, "overrides": {"d_ff": 48}},
            {**UNCACHED, "decoder_input_ids": TOKENS},
        ),
        Architecture(
            "vit",
            _vit,
            HALF,
            {"pixel_values": torch.arange(3 * 3 * 20 * 20, dtype=torch.float32).sin().view(3, 3, 20, 20)},
        ),
    )
}


@cache
def planned(family: str, strategy: str) -> Plan:
    """Return the plan of a family's halved student, made once for all tests that only read it."""
    row = ARCHITECTURES[family]
    return plan_student(row.build(), row.config(strategy), inputs=row.inputs).plan


# What each of these has and no other: an encoder, fused projections, grouped heads under RMS norms, shared layers with a
# projected embedding, two stacks of layers, heads that only drop whole. The other families are `slow`.
QUICK = {("bert", "dim"), ("gpt2", "dim"), ("llama", "head"), ("albert", "head"), ("t5", "dim"), ("modernbert", "head")}


def _row(*values: str, quick: bool) -> Any:
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


every_family = pytest.mark.parametrize(
    "family", [_row(name, quick=any(name == quick for quick, _ in QUICK)) for name in ARCHITECTURES]
)
every_case = pytest.mark.parametrize(
    ("family", "strategy"),
    [
        _row(row.name, strategy, quick=(row.name, strategy) in QUICK)
        for row in ARCHITECTURES.values()
        for strategy in row.strategies
    ],
)
