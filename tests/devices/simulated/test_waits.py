"""A narrow step makes Python wait for the device no more often than a stock step, and copies nothing to it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import simulated_device
import tested_device
import torch
from accelerate.state import AcceleratorState
from architectures import ARCHITECTURES
from torch import nn
from training_runs import arguments, masked_rows
from transformers import Trainer, TrainerCallback, TrainingArguments

from wid_hf import WidTrainer, WidTrainingArguments, get_wid_model

INSIDE = "index on the CPU"
TO_DEVICE = "copy from the CPU"


def numbered(device: str) -> str:
    """The first device of a type that has several."""
    return device if ":" in device or device == "cpu" else f"{device}:0"


def of_a_step(model: nn.Module) -> Counter[str]:
    """What one forward, backward and step of the optimizer count, after two others."""
    ids = torch.randint(5, 100, (3, 8), generator=torch.Generator().manual_seed(0)).to(tested_device.NAME)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(3):
        with tested_device.counted() as found:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return found


@pytest.mark.parametrize("family", ["bert", "llama", "albert"])
def test_a_narrow_step_waits_no_more_than_a_stock_one(family: str) -> None:
    row = ARCHITECTURES[family]
    narrow = of_a_step(get_wid_model(row.build(), row.config("head")).to(tested_device.NAME))
    stock = of_a_step(row.build().to(tested_device.NAME))
    waits = simulated_device.waits
    assert sum(waits(narrow).values()) <= sum(waits(stock).values()), (waits(narrow), waits(stock))
    assert (narrow[INSIDE], narrow[TO_DEVICE]) == (stock[INSIDE], stock[TO_DEVICE])


class ThirdStep(TrainerCallback):
    """Counts in the third step of a training."""

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 2:
            self.counting = tested_device.counted()
            self.found = self.counting.__enter__()

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 3:
            self.counting.__exit__(None, None, None)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_step_of_wid_trainer_waits_no_more_than_trainers(family: str, tmp_path: Path) -> None:
    row, waits = ARCHITECTURES[family], {}
    with patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": numbered(tested_device.NAME)}):
        AcceleratorState._reset_state(True)
        for kind, args, model in (
            (Trainer, TrainingArguments, row.build()),
            (WidTrainer, WidTrainingArguments, get_wid_model(row.build(), row.config("head", init="calibrated"))),
        ):
            third = ThirdStep()
            settings = arguments(tmp_path, args, use_cpu=False, logging_steps=50)
            kind(model, settings, train_dataset=masked_rows(), callbacks=[third]).train()
            assert next(model.parameters()).device.type == tested_device.TYPE
            assert settings.logging_nan_inf_filter
            waits[kind] = simulated_device.waits(third.found)
        AcceleratorState._reset_state(True)
    assert sum(waits[WidTrainer].values()) <= sum(waits[Trainer].values()), waits
