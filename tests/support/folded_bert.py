"""Parts of a tiny BERT whose weights are folded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

IDS = torch.arange(21).view(3, 7) + 2
QUERY = "bert.encoder.layer.0.attention.self.query"


def maps(student: nn.Module, name: str, weight: str = "weight") -> nn.ModuleDict:
    """The maps of one weight, by axis."""
    return student.get_submodule(name).parametrizations[weight][0].maps


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that `model` has gathered, by name; they are cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def encoder(padding: int | None = 0) -> BertModel:
    """A BERT without a head and with a larger vocabulary, whose table nothing else uses."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(**sizes, vocab_size=200, max_position_embeddings=16, pad_token_id=padding)).eval()
