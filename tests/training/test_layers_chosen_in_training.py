"""Layers that are chosen when training begins: what trains is the student that was made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layered_models import batches_for, bert
from torch import Tensor
from transformers import BertForMaskedLM, Trainer, TrainingArguments, default_data_collator

from wid_hf import ConfigError, TrainingError, WidCallback, WidConfig, WidTrainer, WidTrainingArguments, get_wid_model


def teacher() -> BertForMaskedLM:
    """The layers that are missed least are not the first and the last one, which are kept before there is data."""
    torch.manual_seed(0)
    model = bert().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        last = model.bert.encoder.layer[3]
        for writer in (last.attention.output.dense, last.output.dense):
            writer.weight.zero_()
    return model


def rows(model: BertForMaskedLM) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids, "labels": ids} for batch in batches_for(model, 4) for ids in batch["input_ids"]]


def arguments(folder: Path, **more: Any) -> WidTrainingArguments:
    given = {"max_steps": 3, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True}
    return WidTrainingArguments(str(folder), **given, save_strategy="no", compactor_learning_rate=1e-2, **more)


@pytest.mark.parametrize(
    ("sizes", "more"),
    [
        ({}, {"teacher_learning_rate": 1e-3}),
        ({"hidden_size": 12}, {"teacher_learning_rate": 1e-3}),
        ({"hidden_size": 12}, {"teacher_learning_rate": 0.0, "distillation": ["logits", "hidden"]}),
    ],
    ids=["layers alone", "width too", "distilled"],
)
def test_all_that_may_train_is_in_the_optimizer_and_changes(
    tmp_path: Path, sizes: dict[str, Any], more: dict[str, Any]
) -> None:
    model = teacher()
    wid = get_wid_model(model, WidConfig(num_hidden_layers=2, **sizes))
    before = wid.base_model.stacks[0].kept
    trainer = WidTrainer(
        model=wid, args=arguments(tmp_path, **more), train_dataset=rows(model), data_collator=default_data_collator
    )
    trainer.train()

    assert wid.base_model.stacks[0].kept != before
    trained = {id(each) for group in trainer.optimizer.param_groups for each in group["params"]}
    free = {name: each for name, each in wid.named_parameters() if each.requires_grad}
    assert {id(each) for each in free.values()} == trained
    of_teacher = {id(each) for each in model.parameters()} & trained
    assert bool(of_teacher) == bool(more["teacher_learning_rate"])


def test_training_is_that_of_a_student_that_was_calibrated_before(tmp_path: Path) -> None:
    students = []
    for by_hand in (False, True):
        model = teacher()
        wid = get_wid_model(model, WidConfig(num_hidden_layers=2, hidden_size=12))
        args = arguments(tmp_path, teacher_learning_rate=1e-3)
        trainer = WidTrainer(model=wid, args=args, train_dataset=rows(model), data_collator=default_data_collator)
        if by_hand:
            wid.base_model.calibrate(trainer.calibration_batches())
        trainer.train()
        students.append(wid.merge_and_unload().state_dict())

    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_a_trainer_that_makes_its_optimizer_first_is_told_to_calibrate_before(tmp_path: Path) -> None:
    model = teacher()
    wid = get_wid_model(model, WidConfig(num_hidden_layers=2))
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True)
    trainer = Trainer(wid, args, train_dataset=rows(model), data_collator=default_data_collator)
    trainer.add_callback(WidCallback(trainer))

    with pytest.raises(TrainingError, match="before the optimizer is made"):
        trainer.train()


def test_a_schedule_without_a_width_that_shrinks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no width of this student is"):
        get_wid_model(teacher(), WidConfig(layers=[0, 2], schedule="progressive"))
