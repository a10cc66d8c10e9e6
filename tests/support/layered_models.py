"""Tiny models of several layers, of families that count them in different ways; data for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseModel,
    LlamaConfig,
    LlamaForCausalLM,
    LongformerConfig,
    LongformerModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
)

COMMON: dict[str, Any] = {"vocab_size": 60, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
Batches = list[dict[str, torch.Tensor]]


def bert(layers: int = 4) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(num_hidden_layers=layers, max_position_embeddings=16, **COMMON))


def gpt2(layers: int = 4) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=24, n_layer=layers, n_head=4, n_positions=16))


def gemma3() -> Gemma3ForCausalLM:
    heads = {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 4}
    return Gemma3ForCausalLM(Gemma3TextConfig(num_hidden_layers=6, layer_types=KINDS, **heads, **COMMON))


def t5() -> T5Model:
    sizes = {"d_model": 24, "d_ff": 48, "d_kv": 6, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 3}
    return T5Model(T5Config(vocab_size=60, **sizes))


def bart() -> BartForConditionalGeneration:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    layers = {"encoder_layers": 3, "decoder_layers": 4}
    return BartForConditionalGeneration(BartConfig(vocab_size=60, d_model=24, **heads, **layers))


def swin() -> SwinModel:
    stages = {"depths": [2, 2], "num_heads": [2, 4]}
    return SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=16, window_size=4, **stages))


def dinov2() -> Dinov2Model:
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 32, "patch_size": 8}
    return Dinov2Model(Dinov2Config(num_hidden_layers=4, out_indices=[0, 2, 4], **sizes))


def longformer() -> LongformerModel:
    windows = {"attention_window": [4, 8, 4, 8], "max_position_embeddings": 32}
    return LongformerModel(LongformerConfig(num_hidden_layers=4, pad_token_id=1, **windows, **COMMON))


MAKERS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "bert": (bert, {"num_hidden_layers": 2}),
    "albert": (
        lambda: AlbertModel(AlbertConfig(num_hidden_layers=4, embedding_size=12, **COMMON)),
        {"num_hidden_layers": 2},
    ),
    "distilbert": (
        lambda: DistilBertModel(DistilBertConfig(vocab_size=60, dim=24, hidden_dim=48, n_layers=4, n_heads=4)),
        {"num_hidden_layers": 3},
    ),
    "modernbert": (
        lambda: ModernBertForMaskedLM(ModernBertConfig(num_hidden_layers=5, pad_token_id=0, **COMMON)),
        {"num_hidden_layers": 3},
    ),
    "squeezebert": (  # calls the forward of its layers, not the layers
        lambda: SqueezeBertModel(SqueezeBertConfig(num_hidden_layers=4, embedding_size=24, **COMMON)),
        {"num_hidden_layers": 3},
    ),
    "longformer": (longformer, {"num_hidden_layers": 2}),
    "gpt2": (gpt2, {"num_hidden_layers": 3}),
    "gpt_neox_japanese": (  # the last layer alone has a bias
        lambda: GPTNeoXJapaneseModel(GPTNeoXJapaneseConfig(num_hidden_layers=4, **COMMON)),
        {"num_hidden_layers": 3},
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, num_key_value_heads=2, **COMMON)),
        {"num_hidden_layers": 2},
    ),
    "gemma3": (gemma3, {"num_hidden_layers": 4}),
    "t5": (t5, {"num_hidden_layers": 2, "overrides": {"num_decoder_layers": 2}}),
    "bart": (bart, {"overrides": {"decoder_layers": 2}}),
    "swin": (swin, {"overrides": {"depths": [1, 2]}}),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 2], layer_type="basic")),
        {"overrides": {"depths": [1, 2]}},
    ),
    "dinov2": (dinov2, {"num_hidden_layers": 3}),
}


def teacher_of(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return MAKERS[family][0]().eval()


def batches_for(model: PreTrainedModel, count: int = 3, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(8, 3, 32, 32, generator=generator)} for _ in range(count)]

    def ids(length: int) -> torch.Tensor:
        return torch.randint(3, 60, (8, length), generator=generator)

    decoder = {"decoder_input_ids": ids(6)} if model.config.is_encoder_decoder else {}
    return [{"input_ids": ids(10), **decoder} for _ in range(count)]
