from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from wid_hf.hub.model_size import model_size

V, H, F, P, LAYERS = 60, 16, 40, 32, 2
CONFIG = {
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": F,
    "max_position_embeddings": P,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
NORM = 2 * H
TABLES = V * H + P * H + 2 * H
BLOCKS = LAYERS * (4 * (H * H + H) + NORM + (H * F + F) + (F * H + H) + NORM)
HEAD = (H * H + H) + NORM + V  # transform, norm, bias of the decoder


def stored_bytes(folder: Path) -> int:
    """Bytes of the safetensors file after its header: 8 bytes of length, then that many of JSON."""
    content = (folder / "model.safetensors").read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def test_parameters_of_a_tied_masked_lm_are_counted_once() -> None:
    size = model_size(BertForMaskedLM(BertConfig(**CONFIG)))
    assert size.total == TABLES + NORM + BLOCKS + HEAD
    assert size.encoder == NORM + BLOCKS
    assert size.bytes == 4 * size.total


def test_an_untied_decoder_counts_in_total_and_not_in_encoder() -> None:
    size = model_size(BertForMaskedLM(BertConfig(**CONFIG, tie_word_embeddings=False)))
    assert size.total == TABLES + NORM + BLOCKS + HEAD + (V * H + V)  # the bias was tied as well
    assert size.encoder == NORM + BLOCKS


def test_a_headless_model_leaves_out_only_its_tables() -> None:
    size = model_size(BertModel(BertConfig(**CONFIG), add_pooling_layer=False))
    assert (size.total, size.encoder) == (TABLES + NORM + BLOCKS, NORM + BLOCKS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_saved_file(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = BertForMaskedLM(BertConfig(**CONFIG, tie_word_embeddings=tied)).to(dtype)
    model.save_pretrained(tmp_path)
    assert model_size(model).bytes == stored_bytes(tmp_path)


def test_persistent_buffers_count_in_bytes_but_not_as_parameters(tmp_path: Path) -> None:
    model = BertModel(BertConfig(**CONFIG))
    before = model_size(model)
    model.register_buffer("scale", torch.ones(5, dtype=torch.float64))
    model.register_buffer("scratch", torch.ones(7), persistent=False)
    model.save_pretrained(tmp_path)
    assert model_size(model).bytes == before.bytes + 40 == stored_bytes(tmp_path)
    assert model_size(model).total == before.total


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (BertForMaskedLM, BertConfig(**CONFIG)),
        (GPT2LMHeadModel, GPT2Config(vocab_size=V, n_embd=H, n_layer=2, n_head=4, n_positions=P)),
    ],
)
def test_a_model_on_the_meta_device_has_the_sizes_of_the_real_one(
    model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> None:
    with torch.device("meta"):
        skeleton = model_class(config)
    assert model_size(skeleton) == model_size(model_class(config))
