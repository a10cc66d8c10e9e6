"""Tiny random models of any family in transformers' auto mappings.

Takes a family (its `model_type`) and a task, gives a model of a few hundred thousand weights with random
values everywhere. Called by `check`. The family's own default config is scaled down, so that its ratios hold:
with hidden size / 32 go, say, heads / 4 and the width of a head / 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
import transformers.models.auto.modeling_auto as mappings
from transformers import PretrainedConfig, PreTrainedModel

from wid_hf.coupling.trace import named_weights

TASKS = {
    "masked LM": "MASKED_LM",
    "causal LM": "CAUSAL_LM",
    "seq2seq LM": "SEQ_TO_SEQ_CAUSAL_LM",
    "image classification": "IMAGE_CLASSIFICATION",
    "audio classification": "AUDIO_CLASSIFICATION",
    "question answering": "QUESTION_ANSWERING",
}
VOCABULARY, LAYERS = 131, 2
HIDDEN, HEADS, HEAD_WIDTH = 128, 4, 8  # at least these remain, where the family's own default has as many
WORDS_OF_WIDTH = (
    "size",
    "dim",
    "width",
    "channels",
    "d_model",
    "d_ff",
    "d_inner",
    "n_embd",
    "n_inner",
    "hidden",
    "rank",
    "filters",
    "d_latents",
)
WORDS_OF_HEAD_WIDTH = ("head_dim", "headdim", "d_head", "head_size", "kv_channels", "d_kv", "rotary_dim")
WORDS_OF_DEPTH = ("layers", "n_layer", "num_blocks", "depth", "attends_per_block")
NOT_WIDTHS = (
    "vocab",
    "patch_size",
    "image_size",
    "kernel",
    "max_position",
    "window",
    "chunk",
    "batch",
    "num_channels",
    "stride",
    "pad",
    "token",
    "position",
    "bins",
    "experts",
    "group",
    "conv",
    "_act",
    "hidden_layers",
    "input_dim",
    "grid",
    "unit_size",
)

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# The most that a tiny model has of what is no width, by the name that configs have for it.
MOST = (
    (r"vocab|hash_bucket", VOCABULARY),
    (r"max_position|_positions$|_position_embeddings$|^n_positions$|^n_ctx$|^max_seq_len$|^image_size$", 64),
    (r"per_tok|^moe_(k|topk)$|^top_k_experts$|^n_groups?$|expert_group", 2),
    (r"^mm_tokens_per_image$", 4),
    (r"^topk_group$|^first_k_dense_replace$", 1),
    (r"^(num|n|moe_num)_.*expert|window", 4),
    (r"^(?!.*tokenizer).*chunk_size|attn_chunk_length", 8),
)
# Its window of four frames, and what its projector reads: as wide as the encoder.
GRANITE_SPEECH = {
    "downsample_rate": 2,
    "projector_config": {"model_type": "blip_2_qformer", "encoder_hidden_size": 1024},
}
# What a family's own defaults lack or make too large for a tiny model, by model type or model class. In the terms of a
# full-size model: it is scaled like the rest. Defaults of at most `WHOLE` layers keep all of them.
WHOLE = 4
FAMILY_VALUES: dict[str, dict[str, Any]] = {
    "ReformerModelWithLMHead": {"is_decoder": True},
    "bitnet": {"num_key_value_heads": 4},  # five do not halve
    "bit": {"num_groups": 4},  # 32 groups do not divide a tiny stem
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6, "moe_intermediate_size": 1536},  # experts want multiples of 16 bytes
    "donut-swin": {"window_size": 2},  # the last of four stages has 2 x 2 places
    "dots1": {"n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "falcon": {"hidden_size": 4096, "num_attention_heads": 64, "num_kv_heads": 64, "ffn_hidden_size": 16384},  # not 71
    "gemma3n_text": {"num_kv_shared_layers": 0},  # else a kind of layer may be shared only
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"hidden_size": 2048, "intermediate_size": 2048},  # half of 2880 / 16 is no multiple of 16 bytes
    "granite_speech": GRANITE_SPEECH,
    "granite_speech_plus": GRANITE_SPEECH,
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hgnet_v2": {  # so wide that a sixteenth can be halved
        "stem_channels": [3, 256, 512],
        "stage_in_channels": [512, 256, 512, 1024],
        "stage_mid_channels": [256, 256, 512, 512],
        "stage_out_channels": [256, 512, 1024, 2048],
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "ministral": {"head_dim": 128},
    "musicgen_decoder": {"num_codebooks": 3},  # as many as the example has rows
    "musicgen_melody_decoder": {"num_codebooks": 3},
    "gemma4_unified_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 32, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]},
    "nemotron": {"num_key_value_heads": 48},
    "reformer": {"axial_pos_shape": (7, 1)},  # when training, as long as the example
    "shieldgemma2": {"yes_token_index": 10784, "no_token_index": 3771},  # else taken as they are
    "squeezebert": {"q_groups": 2, "k_groups": 2, "v_groups": 2},  # four do not divide six heads
    "swin": {"window_size": 2},
    "voxtral": {"audio_token_id": 24},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
}


def families(task: str) -> dict[str, str]:
    """Return for each family of `task` the name of its model class."""
    names = getattr(mappings, f"MODEL_FOR_{TASKS[task]}_MAPPING_NAMES")
    return {family: name if isinstance(name, str) else name[0] for family, name in names.items()}


def tiny_model(family: str, class_name: str, seed: int = 0, layers: int = LAYERS) -> PreTrainedModel:
    """Return a tiny model of `class_name` whose weights are all random, in evaluation mode.

    It has one layer of each kind, and `layers` at least; half as many in each of several stages.

    Raises whatever the family's own classes raise: then no tiny model can be made this way.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_class.config_class, class_name, layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for weight in named_weights(model).values():
            # Constant weights, such as fresh norms, would hide wrong groups.
            if isinstance(weight, torch.nn.Parameter):
                weight.data.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def tiny_config(config_class: type[PretrainedConfig], class_name: str = "", layers: int = LAYERS) -> PretrainedConfig:
    """Return the default config of `config_class` scaled down, parts of composite configs included."""
    given = FAMILY_VALUES.get(config_class.model_type, {}) | FAMILY_VALUES.get(class_name, {})
    return _tiny(config_class(**given), {}, layers)


def _tiny(default: PretrainedConfig, others: Mapping[int, int], layers: int) -> PretrainedConfig:
    """Scale `default`; `others` maps the old hidden sizes of the parts around it to the new ones."""
    parts = {name: _completed(part) for name, part in vars(default).items() if isinstance(part, PretrainedConfig)}
    scale = _Scale(default, layers)
    hidden = {**others, **{size: new for part in parts.values() for size, new in _Scale(part, layers).hidden.items()}}
    hidden |= scale.hidden
    values: dict[str, Any] = {name: _tiny(part, hidden, layers).to_dict() for name, part in parts.items()}
    usual = _usual(type(default))
    for name, value in default.to_dict().items():
        if name not in values and name not in ("model_type", "transformers_version"):
            new = scale.value(name, value, hidden)
            if name not in usual or new != usual[name]:  # what a class computes from other values stays computed
                values[name] = new
    return type(default)(**values)


def _completed(part: PretrainedConfig) -> PretrainedConfig:
    """Return a part of a composite config with its own family's values."""
    values = FAMILY_VALUES.get(part.model_type)
    return type(part)(**{**part.to_dict(), **values}) if values else part


def _usual(config_class: type[PretrainedConfig]) -> dict[str, Any]:
    try:
        return config_class().to_dict()
    except Exception:  # a class whose own defaults do not pass its own checks
        return {}


class _Scale:
    """By what one config is scaled.

    Attributes:
        width: divisor of all widths.
        heads: divisor of the numbers of heads; `width // heads` is that of the widths of heads.
        least: how many layers remain at least, where there are as many.
        layers: the layers to keep, one of each kind.
        hidden: the old hidden size with the new one.
    """

    def __init__(self, default: PretrainedConfig, layers: int) -> None:
        own = default.to_dict()
        names = ("hidden_size", "d_model", "n_embd", "embed_dim")
        sizes = [own[n] for name in names for n in (default.attribute_map.get(name, name),) if n in own]
        sizes += [value for name, value in own.items() if name in ("hidden_sizes", "embed_dims", "embed_dim")]
        lists = [value for value in sizes if _is_list_of_ints(value)]
        ints = [value for value in sizes if type(value) is int]
        hidden = max(lists[0]) if lists else ints[0] if ints else 0
        counts = [value for name, value in own.items() if _counts_heads(name) and type(value) is int and value > 2]
        queries = [own[name] for name in own if _counts_heads(name) and "kv" not in name and "key_value" not in name]
        queries = [count for count in queries if count in counts]
        self.width = self.heads = 1
        while hidden // (2 * self.width) >= HIDDEN and not any(
            entry % (2 * self.width) for entry in (lists[0] if lists else [hidden])
        ):
            self.width *= 2
        while (
            2 * self.heads <= self.width
            and all(count // self.heads % 4 == 0 or count // self.heads == 2 for count in counts)
            and min(queries, default=0) // (2 * self.heads) >= HEADS
        ):
            self.heads *= 2
        while self.width > 1 and counts and hidden // self.width // (max(counts) // self.heads) < HEAD_WIDTH:
            self.width //= 2
        self.heads = min(self.heads, self.width)
        self.hidden = {hidden: hidden // self.width} if hidden and not lists else {}
        self.name = next((n for name in names if (n := default.attribute_map.get(name, name)) in own), "")
        self.least = layers
        self.depth, self.layers = _kept_layers(own, layers)

    def value(self, name: str, value: Any, others: Mapping[int, int]) -> Any:
        """Return the new value of one entry of a config."""
        if name == "per_layer_config" and isinstance(value, Mapping):
            by_number = {int(at): entries for at, entries in value.items()}
            return {
                new: {inner: self.value(inner, of, others) for inner, of in by_number[old].items()}
                for new, old in enumerate(self.layers)
                if old in by_number
            }
        if isinstance(value, Sequence) and not isinstance(value, str):
            return self._list(name, value, others)
        if type(value) is not int:
            return value
        return self._int(name, value, others)

    def _list(self, name: str, value: Sequence[Any], others: Mapping[int, int]) -> Any:
        new = list(value)
        if len(new) == self.depth and len(new) > len(self.layers):
            new = [new[at] for at in self.layers]
        if _is_list_of_ints(new):
            if name in ("depths", "num_blocks", "depth") or name.endswith("_block_repeats"):
                # Cvt has a `depth`, and no model where a stage has fewer layers than there are stages before it.
                new = [min(entry, self.least // 2 + (at if name == "depth" else 0)) for at, entry in enumerate(new)]
            elif name == "image_size":
                new = [min(entry, 64) for entry in new]
            elif "window" in name:
                new = [min(entry, 4) for entry in new]
            elif "conv_dim" in name or _is_width(name):
                new = [entry // self.width if entry % self.width == 0 else entry for entry in new]
            elif name.endswith("token_id"):
                new = [entry if entry < VOCABULARY else _token(name) for entry in new]
        return type(value)(new)

    def _int(self, name: str, value: int, others: Mapping[int, int]) -> int:
        if name.endswith(("token_id", "token_index")):
            return value if value < VOCABULARY else _token(name)
        if name.endswith(WORDS_OF_DEPTH) and name != "num_feat_extract_layers":
            return len(self.layers) if value == self.depth else min(value, self.least)
        for names, most in MOST:
            if re.search(names, name):
                return min(value, most)
        if _counts_heads(name):
            return value // self.heads if value % self.heads == 0 and value // self.heads >= 2 else min(value, 2)
        if any(word in name for word in WORDS_OF_HEAD_WIDTH):
            return max(value // (self.width // self.heads), min(value, HEAD_WIDTH))
        if not _is_width(name):
            return value
        if "hidden" in name and name != self.name and value in others:
            return others[value]
        return value // self.width if value % self.width == 0 else max(value // self.width // 2 * 2, min(value, 8))


def _is_width(name: str) -> bool:
    return any(word in name for word in WORDS_OF_WIDTH) and not any(word in name for word in NOT_WIDTHS)


def _counts_heads(name: str) -> bool:
    return "heads" in name or name in ("n_head", "num_head")


def _token(name: str) -> int:
    """Return a token of its own for each special name, below those that example inputs use."""
    return VOCABULARY // 2 - sum(map(ord, name)) % (VOCABULARY // 4)


def _is_list_of_ints(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(type(entry) is int for entry in value)


def _kept_layers(own: Mapping[str, Any], least: int) -> tuple[int, list[int]]:
    """Return how many layers there are and which of them to keep: one of each kind, at least `least`."""
    depth = next(
        (own[name] for name in ("num_hidden_layers", "num_layers", "n_layer") if type(own.get(name)) is int), 0
    )
    depth = depth or max(
        (len(value) for name, value in own.items() if name.endswith("layer_types") and value), default=0
    )
    lists = [value for value in own.values() if isinstance(value, (list, tuple)) and len(value) == depth]
    per_layer = {int(at): str(entries) for at, entries in (own.get("per_layer_config") or {}).items()}
    kinds: dict[tuple[str, ...], int] = {}
    for at in range(depth):
        kinds.setdefault((*(str(entries[at]) for entries in lists), per_layer.get(at, "")), at)
    if depth <= WHOLE:
        return depth, list(range(depth))
    kept = list(kinds.values())
    kept += [at for at in range(depth) if at not in kept][: max(least - len(kept), 0)]
    return depth, sorted(kept)
