"""Short trainings of a tiny masked language model: rows, arguments, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from wid_hf import WidConfig, WidTrainingArguments

# A training that neither saves nor reports, on the CPU.
QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
HALF = WidConfig(hidden_size=12, intermediate_size=24, init="identity")


def masked_rows(count: int = 16, length: int = 8) -> Dataset:
    """Rows that are masked already, so that a run depends on nothing but the model and the arguments."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (count, length), generator=generator)
    labels = torch.where(torch.rand(count, length, generator=generator) < 0.4, ids, -100)
    labels[:, 0] = ids[:, 0]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def arguments(folder: Path, kind: type[TrainingArguments] = WidTrainingArguments, **given: Any) -> Any:
    """Arguments of `kind` for a few steps; whatever is given goes before."""
    defaults: dict[str, Any] = {
        **QUIET,
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
    }
    return kind(**{**defaults, **given})


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(21).view(3, 7) + 5).logits
