"""Reports of schedules and starts that silently never ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from case import case
from small import arguments, batches, bert, half_bert, rows, same_outputs
from transformers import Trainer, TrainingArguments

from wid_hf import CalibrationConfig, WidCallback, WidConfig, WidSchedule, WidTrainer, get_wid_model

KIND = "The start and the schedule"
SHORT = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)  # narrow after step 4


@case(
    KIND,
    "peft#432, peft#1327",
    "`Trainer` is given a model whose start was never made",
    refused=("calibrat", "WidCallback|WidTrainer"),
)
def plain_trainer_without_a_start(folder: Path) -> None:
    model = get_wid_model(bert(), WidConfig(hidden_size=12))
    Trainer(model=model, args=arguments(folder, TrainingArguments), train_dataset=rows()).train()


@case(
    KIND,
    "peft#432",
    "A training loop of one's own on a model whose start was never made",
    refused=("calibrat", r"calibrate\("),
)
def own_loop_without_a_start(folder: Path) -> None:
    model = get_wid_model(bert(), WidConfig(hidden_size=12)).train()
    batch = batches(1)[0]
    model(**batch, labels=batch["input_ids"]).loss.backward()


@case(KIND, "peft#1327", "`Trainer` with `WidCallback`: the start is made before the first step")
def callback_makes_the_start(folder: Path) -> None:
    model = get_wid_model(
        bert(), WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=32, batch_size=8))
    )
    by_hand = get_wid_model(bert(), WidConfig(hidden_size=12), calibration_data=batches())
    settings = arguments(folder, TrainingArguments, learning_rate=1e-6)
    Trainer(model=model, args=settings, train_dataset=rows(), callbacks=[WidCallback()]).train()
    assert bool(model.base_model.calibrated)
    student, other = model.merge_and_unload(), by_hand.merge_and_unload()
    table = student.bert.embeddings.word_embeddings.weight
    assert table.shape == other.bert.embeddings.word_embeddings.weight.shape == (60, 12)
    assert torch.isfinite(table).all()


@case(KIND, "peft#1801", "Merging while the schedule is not done", refused=("schedule|progressive", "force=True|steps"))
def merge_of_an_unfinished_schedule(folder: Path) -> None:
    model = get_wid_model(bert(), WidConfig(hidden_size=12, schedule=replace(SHORT, selection="norm")))
    model.wid_begin(total_steps=8)
    model.wid_step(1)
    model.merge_and_unload()


@case(KIND, "peft#1801, peft#3373", "`Trainer` with `WidCallback` runs the schedule to its end, widths as asked for")
def callback_runs_the_schedule(folder: Path) -> None:
    model = get_wid_model(bert(), WidConfig(hidden_size=12, intermediate_size=24, schedule=SHORT))
    assert model.base_model.is_wide
    settings = arguments(folder, TrainingArguments, max_steps=6)
    Trainer(model=model, args=settings, train_dataset=rows(), callbacks=[WidCallback()]).train()
    assert not model.base_model.is_wide
    wid = model(**batches(1)[0]).logits
    student = model.merge_and_unload()
    assert student.config.hidden_size == 12
    assert student.bert.encoder.layer[0].intermediate.dense.weight.shape == (24, 12)
    assert wid.shape == (8, 12, 60)


@case(
    KIND,
    "peft#1327, peft#3373",
    "A schedule that needs more steps than the training has",
    refused=("steps", "max_steps|shorter|longer|schedule"),
)
def schedule_longer_than_training(folder: Path) -> None:
    slow = WidSchedule(mask_interval=10, mask_increments=10, decay_to_zero_steps=10)
    model = get_wid_model(bert(), WidConfig(hidden_size=12, schedule=slow))
    WidTrainer(model=model, args=arguments(folder, max_steps=5), train_dataset=rows()).train()


@case(
    KIND,
    "peft#3373",
    "Calibrating once more after training, which would throw it away",
    refused=("trained", "reset=True"),
)
def calibration_after_training(folder: Path) -> None:
    model = half_bert()
    WidTrainer(model=model, args=arguments(folder, learning_rate=1e-2), train_dataset=rows()).train()
    before = model.merge_and_unload()
    try:
        model.base_model.calibrate(batches())
    finally:
        same_outputs(before, model.merge_and_unload())
