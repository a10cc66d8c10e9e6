"""Tiny random models of any family in transformers' auto mappings.

Takes a family (its `model_type`) and a task, gives a model of a few hundred thousand weights with random
values everywhere. Called by `check`. The family's own default config is scaled down, so that its ratios hold.
"""

from __future__ import annotations

import inspect
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
VOCABULARY, POSITIONS, LAYERS, EXPERTS = 131, 64, 2, 4
HIDDEN = 128  # widths are divided by the power of two that brings the hidden size down to about this
WORDS_OF_WIDTH = (
    "size", "dim", "width", "channels", "d_model", "d_ff", "d_kv", "d_inner", "n_embd", "n_inner", "hidden", "rank",
)  # fmt: skip
WORDS_OF_DEPTH = ("layers", "n_layer", "num_blocks", "depth")
NOT_WIDTHS = (
    "vocab", "patch_size", "image_size", "kernel", "max_position", "type_vocab", "window", "chunk", "batch",
    "num_channels", "stride", "pad", "token", "position", "bins", "expert", "group", "conv",
)  # fmt: skip


def families(task: str) -> dict[str, str]:
    """Return for each family of `task` the name of its model class."""
    names = getattr(mappings, f"MODEL_FOR_{TASKS[task]}_MAPPING_NAMES")
    return {family: name if isinstance(name, str) else name[0] for family, name in names.items()}


def tiny_model(family: str, class_name: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny model of `class_name` whose weights are all random, in evaluation mode.

    Raises whatever the family's own classes raise: then no tiny model can be made this way.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_class.config_class)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for weight in named_weights(model).values():
            # Constant weights, such as fresh norms, would hide wrong groups.
            if isinstance(weight, torch.nn.Parameter):
                weight.data.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def tiny_config(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """Return the default config of `config_class` scaled down, parts of composite configs included."""
    default = config_class()
    return config_class(**_scaled(default))


def _scaled(default: PretrainedConfig) -> dict[str, Any]:
    accepted = inspect.signature(type(default).__init__).parameters
    divisor = _divisor(default)
    values: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        part = getattr(default, name, None)
        if isinstance(part, PretrainedConfig):
            values[name] = tiny_config(type(part)).to_dict()
        elif (new := _scaled_value(name, value, divisor)) is not None and new != value:
            values[name] = new
    return {name: value for name, value in values.items() if name in accepted or "kwargs" in accepted}


def _divisor(config: PretrainedConfig) -> int:
    hidden = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    divisor = 1
    while isinstance(hidden, int) and hidden // (2 * divisor) >= HIDDEN and hidden % (2 * divisor) == 0:
        divisor *= 2
    return divisor


def _scaled_value(name: str, value: Any, divisor: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if name == "vocab_size":
        return VOCABULARY
    if "max_position" in name or name in (
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_source_positions",
        "max_target_positions",
    ):
        return min(value, POSITIONS)
    if any(name.endswith(word) for word in WORDS_OF_DEPTH):
        return min(value, LAYERS)
    if name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        return min(value, EXPERTS)
    if name in ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"):
        return min(value, 2)
    if name == "image_size":
        return min(value, 64)
    if name.endswith("_token_id") and value >= VOCABULARY:
        return VOCABULARY - 1
    is_width = any(word in name for word in WORDS_OF_WIDTH) and not any(word in name for word in NOT_WIDTHS)
    if is_width and value >= divisor and value % divisor == 0:
        return value // divisor
    return None
