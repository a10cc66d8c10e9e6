"""Tiny random sentence-transformers folders, in the layout before version 5.4 and in the one now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from toys import save_teacher
from transformers import BertConfig, BertModel

from wid_hf.adapter.merge import remember_map
from wid_hf.sentence_models.pooling import KEYS

WIDTH, SPACE = 24, 6  # of the hidden states of `save_teacher`, and of vectors behind a dense layer
CLASSIC = {kind: f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Normalize")}
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pooling_config(*modes: str, new: bool = False, **others: Any) -> dict[str, Any]:
    """The file of a pooling by `modes`."""
    if new:
        return {"embedding_dimension": WIDTH, "pooling_mode": modes[0] if len(modes) == 1 else list(modes), **others}
    return {"word_embedding_dimension": WIDTH, **{key: mode in modes for key, mode in KEYS.items()}, **others}


def write_modules(
    folder: Path,
    *behind: str,
    modes: Sequence[str] = ("mean",),
    new: bool = False,
    pooling: Mapping[str, Any] | None = None,
    activation: str = "torch.nn.modules.activation.Tanh",
    bias: bool = True,
    settings: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
) -> Path:
    """Make `folder` a sentence-transformers model of a transformer, a pooling and the kinds of modules in `behind`.

    Weights of the first dense layer are random, from the pooled width to `SPACE`; others stay in it.
    """
    types = NEW if new else CLASSIC
    kinds = ["Transformer", "Pooling", *behind]
    places = ["", *(f"{at}_{kind}" for at, kind in enumerate(kinds) if at)]
    write_json(
        folder / "modules.json",
        [
            {"idx": at, "name": str(at), "path": place, "type": types.get(kind, kind)}
            for at, (kind, place) in enumerate(zip(kinds, places, strict=True))
        ],
    )
    write_json(folder / "1_Pooling" / "config.json", pooling_config(*modes, new=new, **(pooling or {})))
    inner = WIDTH * len(modes)
    for kind, place in zip(kinds, places, strict=True):
        if kind == "Dense":
            config = {"in_features": inner, "out_features": SPACE, "bias": bias, "activation_function": activation}
            generator = torch.Generator().manual_seed(inner)
            tensors = {"linear.weight": 0.5 * torch.randn(SPACE, inner, generator=generator)}
            tensors |= {"linear.bias": torch.randn(SPACE, generator=generator)} if bias else {}
            write_json(folder / place / "config.json", config)
            save_file(tensors, folder / place / "model.safetensors")
            inner = SPACE
        elif kind == "Normalize" and new:
            names = ("module_input_name", "module_output_name")
            write_json(folder / place / "config.json", dict.fromkeys(names, "sentence_embedding"))
    lengths = {"max_seq_length": 16, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", {**lengths, **(transformer or {})})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, **(settings or {})})
    return folder


def save_sentence_teacher(folder: Path, *behind: str, **given: Any) -> Path:
    """Save a tiny random BERT without a head to `folder`, as a sentence-transformers model."""
    return write_modules(save_teacher(folder, BertModel), *behind, **given)


def bert_of(width: int, output_map: torch.Tensor | None = None) -> BertModel:
    """A student of this width, as it is merged from a teacher whose outputs have this map to its own."""
    student = BertModel(BertConfig(vocab_size=4, hidden_size=width, num_hidden_layers=0, num_attention_heads=1))
    remember_map(student, output_map)
    return student
