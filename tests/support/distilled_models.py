"""Tiny teachers that are distilled, students that have moved from their start, and the loss between both."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from wid_hf import WidConfig
from wid_hf.training.losses.distillation import Distillation

HEADS = WidConfig(hidden_size=12, intermediate_size=24, head_strategy="head", init="identity")


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=60,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return seeded(GPT2LMHeadModel, config)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=48,
    )
    return seeded(LlamaForCausalLM, config)


def bert(model_class: type[PreTrainedModel] = BertForMaskedLM, **given: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=60, max_position_embeddings=32, **{**sizes, **still, **given})
    return seeded(model_class, config)


def seeded(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A random model whose weights are large enough for its outputs to differ from token to token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def distilled(model: PeftModel, losses: list[str], inputs: dict[str, Tensor], **given: Any) -> Tensor:
    distillation = Distillation(model, losses)
    with distillation.watching() as student:
        student.output = model(**inputs)
    return distillation.loss(student, distillation.target(inputs), inputs, **given)


def moved(model: PeftModel, amount: float = 0.05) -> PeftModel:
    """The model after something like training: its compactors are no selections any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".matrix"):
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def mamba2() -> Mamba2ForCausalLM:
    """A teacher without attention."""
    config = Mamba2Config(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=12,
        n_groups=1,
        state_size=8,
        chunk_size=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Mamba2ForCausalLM(config)


def opt(layerdrop: float) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=24,
        max_position_embeddings=32,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=layerdrop,
    )
    return seeded(OPTForCausalLM, config)
