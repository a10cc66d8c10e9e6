"""Options of `Trainer` that save memory work in `WidTrainer`: they change no number, or the steps only as they say."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import HALF, arguments, logits, masked_rows
from transformers import BertForMaskedLM

from wid_hf import WidTrainer, get_wid_model


def trained(teacher: BertForMaskedLM, folder: Path, **given: Any) -> WidTrainer:
    args = arguments(folder, teacher_learning_rate=0, max_steps=6, **given)
    trainer = WidTrainer(model=get_wid_model(deepcopy(teacher), HALF), args=args, train_dataset=masked_rows())
    trainer.train()
    return trainer


@pytest.mark.parametrize("given", [{}, {"optim": "adafactor"}, {"gradient_accumulation_steps": 2}], ids=str)
def test_activation_checkpointing_changes_no_weight(
    tiny_bert: BertForMaskedLM, tmp_path: Path, given: dict[str, Any]
) -> None:
    plain, saving = (
        trained(tiny_bert, tmp_path, activation_checkpointing=checkpointing, **given) for checkpointing in (False, True)
    )
    assert torch.equal(logits(plain.model), logits(saving.model))


@pytest.mark.parametrize(("optimizer", "package"), [("adamw_torch_8bit", "torchao"), ("adamw_8bit", "bitsandbytes")])
def test_an_optimizer_of_8_bits_trains_as_adamw_does(
    tiny_bert: BertForMaskedLM, tmp_path: Path, optimizer: str, package: str
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    losses = [
        [entry["loss"] for entry in trained(tiny_bert, tmp_path, optim=name).state.log_history if "loss" in entry]
        for name in ("adamw_torch", optimizer)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1][-1] < losses[1][0]
