"""More tiny models whose streams may be turned: what `architectures` has no row for."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from architectures import ARCHITECTURES, COMMON, HALF, TOKENS, UNCACHED, VOCABULARY, Architecture
from peft import PeftModel
from torch import Tensor, nn

from wid_hf import get_wid_model
from wid_hf.coupling.trace import output_tensors

_DECODER = {**COMMON, "bos_token_id": 1, "eos_token_id": 2}
_SPEECH = torch.arange(2 * 8 * 20, dtype=torch.float32).sin().view(2, 8, 20)
_WHISPER = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_HALF_OF_TWO_STACKS = {"hidden_size": 24, "overrides": {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}}

TURNING = {name: ARCHITECTURES[name] for name in ("bert", "gpt2", "llama", "vit", "albert")} | {
    row.name: row
    for row in (
        Architecture(
            "gemma2",
            lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(num_key_value_heads=2, head_dim=12, **_DECODER)),
            {**HALF, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12},
            UNCACHED,
        ),
        Architecture(
            "gpt-neox",
            lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(rotary_pct=0.5, **_DECODER)),
            HALF,
            UNCACHED,
            strategies=("head",),
        ),
        Architecture(
            "bart",
            lambda: hf.BartForConditionalGeneration(hf.BartConfig(max_position_embeddings=40, **_WHISPER)),
            _HALF_OF_TWO_STACKS,
            {**UNCACHED, "decoder_input_ids": TOKENS},
        ),
        Architecture(
            "whisper",
            lambda: hf.WhisperForConditionalGeneration(
                hf.WhisperConfig(max_source_positions=10, max_target_positions=40, num_mel_bins=8, **_WHISPER)
            ),
            _HALF_OF_TWO_STACKS,
            {"input_features": _SPEECH, "decoder_input_ids": TOKENS[:2], "use_cache": False},
        ),
        Architecture("bert-model", lambda: hf.BertModel(hf.BertConfig(**COMMON)), HALF),
        Architecture("bert-classifier", lambda: hf.BertForSequenceClassification(hf.BertConfig(**COMMON)), HALF),
        Architecture("bert-qa", lambda: hf.BertForQuestionAnswering(hf.BertConfig(**COMMON)), HALF),
    )
}


def data_for(row: Architecture, count: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Batches like the row's example inputs: random tokens or numbers, 12 of them."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        batch = dict(row.inputs)
        for name, given in row.inputs.items():
            if not isinstance(given, torch.Tensor):
                continue
            shape = (12, *given.shape[1:])
            if given.is_floating_point():
                batch[name] = torch.randn(shape, generator=generator).to(dtype)
            else:
                batch[name] = torch.randint(5, VOCABULARY, shape, generator=generator)
        made.append(batch)
    return made


def calibrated(family: str, dtype: torch.dtype = torch.float32, batches: int = 4) -> tuple[PeftModel, list[Any]]:
    """A student of the family at its calibrated start, and the batches that this was made from."""
    row = TURNING[family]
    teacher = row.build().to(dtype)
    data = data_for(row, batches, dtype)
    config = row.config(row.strategies[0], init="calibrated")
    return get_wid_model(teacher, config, example_inputs=data[0], calibration_data=data), data


def outputs(model: nn.Module, data: list[Any]) -> list[Tensor]:
    """All outputs on all batches."""
    with torch.no_grad():
        return [tensor for each in data for tensor in output_tensors(model(**each))]
