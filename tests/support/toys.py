"""Toys that several tests need: a word tokenizer, texts in its words, tiny teachers, configs and noise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerFast, Wav2Vec2Config

from wid_hf.calibration import InputReconstruction

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

# One student of a BERT with hidden size 24 for each way to start and to become narrow.
CONFIGS: dict[str, dict[str, Any]] = {
    "identity": {"hidden_size": 12, "intermediate_size": 24, "init": "identity"},
    "calibrated": {"hidden_size": 12, "intermediate_size": 24, "calibration_config": {"samples": 32}},
    # Choices after steps 1 and 2, narrow after step 4: a run that stops after step 3 resumes before the shrink.
    "progressive": {
        "hidden_size": 12,
        "intermediate_size": 24,
        "schedule": {"mask_interval": 1, "mask_increments": 2, "decay_to_zero_steps": 2},
    },
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, `[CLS] x [SEP]` around a text and `[CLS] x [SEP] y [SEP]` around a pair."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, **dict(zip(names, SPECIAL, strict=True))
    )


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 3 to 10 words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 10))) for _ in range(count)]


def write_texts(path: Path, count: int = 80, seed: int = 0) -> Path:
    """Write `texts` to `path`, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts(count, seed)) + "\n", encoding="utf-8")
    return path


def save_teacher(folder: Path, model_class: type[PreTrainedModel], hidden: int = 24, layers: int = 2) -> Path:
    """Save a tiny random BERT of `model_class` with a word tokenizer to `folder`."""
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def wav2vec2_config(**given: Any) -> Wav2Vec2Config:
    """A tiny model of speech in which nothing is random."""
    defaults: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (8, 8),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 8),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": 2,
        "pad_token_id": 0,
        "mask_time_prob": 0.0,
        "apply_spec_augment": False,
    }
    kinds = ("hidden", "attention", "activation", "feat_proj", "final")
    defaults |= {"layerdrop": 0.0, **{f"{kind}_dropout": 0.0 for kind in kinds}}
    return Wav2Vec2Config(**{**defaults, **given})


def noisy(model: nn.Module, scale: float = 0.3) -> None:
    """Take every compactor away from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".matrix"):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def hooks(model: nn.Module) -> int:
    """The number of forward hooks on a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def reconstruction(weight: str, before: float = 0.5, after: float = 0.25, note: str = "") -> InputReconstruction:
    """The record of a weight's input that became half as wide."""
    return InputReconstruction(weight, 1, 24, 12, 100, before, after, note)


def labelled_batch(rows: int = 4, length: int = 9) -> dict[str, Tensor]:
    """Texts of unequal lengths with unequal numbers of labels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (rows, 1), generator=generator)).long()
    chosen = (torch.rand(rows, length, generator=generator) < 0.4) & mask.bool()
    chosen[:, 1] = True
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(chosen, ids, -100)}


def labelled_rows(count: int = 16, length: int = 8) -> Dataset:
    """Rows of unequal numbers of labels, masked already."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (count, length), generator=generator)
    labels = torch.where(torch.rand(count, length, generator=generator) < 0.4, ids, -100)
    labels[:, 1] = ids[:, 1]
    assert len(set((labels != -100).sum(1).tolist())) > 2
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
