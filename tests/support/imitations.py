"""Tiny teachers of which students learn outputs, and short trainings of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from training_runs import HALF, arguments
from transformers import BertConfig, PreTrainedModel

from wid_hf import WidConfig, get_wid_model
from wid_hf.objectives import Objective
from wid_hf.training.imitating_trainer import ImitatingTrainer


def teacher_of(kind: type[PreTrainedModel], seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny random BERT without dropout, whose noise hides progress."""
    sizes = BertConfig(
        vocab_size=15, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config,
    )  # fmt: skip
    return made_strong(kind(sizes).eval(), seed)


def made_strong(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give a model weights that are large enough for its outputs to differ from text to text."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return model


def imitating_trainer(
    objective: Objective,
    folder: Path,
    data: Dataset,
    config: WidConfig = HALF,
    accumulation: int = 1,
    steps: int = 1,
    *,
    label_weight: float = 0.0,
    distillation: list[str] | None = None,
) -> ImitatingTrainer:
    """A trainer on 8 rows in each step, by the objective's loss from the teacher."""
    args = arguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        compactor_learning_rate=3e-3,
        teacher_learning_rate=0,
        distillation=distillation or [],
    )
    return ImitatingTrainer(
        get_wid_model(objective.teacher, config),
        args,
        imitation=objective.loss,
        reduction=objective.reduction,
        label_weight=label_weight,
        train_dataset=data,
        data_collator=objective.collator,
    )
