"""How large a model is: parameters, and bytes on disk.

Takes a model, also on the meta device; gives a `ModelSize`. Called by cards, reports and commands.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """Parameters in all (`total`) and outside embeddings and head (`encoder`); `bytes` of weights on disk."""

    total: int
    encoder: int
    bytes: int


def model_size(model: PreTrainedModel) -> ModelSize:
    """Sizes of `model`, real or on the meta device; a tied tensor counts once.

    `encoder` leaves out the tables of nn.Embedding modules, with their tied copies, and whatever lies
    outside `model.base_model`. `bytes` are the tensors of the safetensors file, without its header.
    """
    tables = {
        id(table)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for table in module.parameters(recurse=False)
    }
    # keep_vars keeps object identity, which shows ties even on the meta device, where nothing has an address
    stored = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return ModelSize(
        total=sum(parameter.numel() for parameter in model.parameters()),
        encoder=sum(p.numel() for p in model.base_model.parameters() if id(p) not in tables),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
    )


def size_rows(sizes: dict[str, ModelSize], names: list[str]) -> list[tuple[str, ...]]:
    """Return table rows of total and encoder parameters and bytes; models without sizes stay blank."""

    def cells(attribute: str) -> tuple[str, ...]:
        whole = getattr(sizes["teacher"], attribute)
        values = [getattr(sizes[name], attribute) if name in sizes else None for name in names]
        return tuple("" if v is None else f"{v:,} ({v / whole:.1%})" for v in values)

    labels = {"total": "parameters", "encoder": "encoder parameters", "bytes": "bytes on disk"}
    return [(label, *cells(attribute)) for attribute, label in labels.items()]
