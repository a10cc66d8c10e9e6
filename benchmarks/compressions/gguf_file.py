"""A Llama as a GGUF file, in float32.

Takes a folder of transformers; gives the file, without a tokenizer. wid-hf has no such export; this one is only to see
that a student's sizes can be told in that format and are read back.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import AutoModelForCausalLM


def write_gguf(folder: Path, file: Path) -> Path:
    """Write the model in `folder` to `file`, and return it. It needs the package gguf."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kind = name.split(".")[-2]
        stored = _interleaved(weight, heads[kind]) if kind in heads else weight
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Return a weight whose rows of a head, that rotary positions pair by halves, are paired as neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
