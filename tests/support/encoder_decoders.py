"""Tiny random encoder-decoders for the words of `toys`, without dropout."""

from __future__ import annotations

from typing import Any

from imitations import made_strong
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from wid_hf import WidConfig

TOKENS: dict[str, Any] = {"vocab_size": 15, "pad_token_id": 0, "eos_token_id": 3}
T5: dict[str, Any] = {
    "d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32, "dropout": 0.0, "bos_token_id": 2,
    "decoder_start_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
HALF_T5 = WidConfig(overrides={"d_model": 12, "d_ff": 24}, init="identity")
HALF_BART = WidConfig(overrides={"d_model": 12, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}, init="identity")


def t5(seed: int) -> PreTrainedModel:
    return made_strong(T5ForConditionalGeneration(T5Config(**T5, **TOKENS)).eval(), seed)


def bart(seed: int) -> PreTrainedModel:
    return made_strong(BartForConditionalGeneration(BartConfig(**BART, **TOKENS)).eval(), seed)


def m2m(seed: int) -> PreTrainedModel:
    """Its class does not say how it makes the inputs of its decoder."""
    return made_strong(M2M100ForConditionalGeneration(M2M100Config(**BART, **TOKENS)).eval(), seed)
