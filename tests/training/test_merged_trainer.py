"""A student that is merged before training: a stock model, which learns from the teacher that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from toys import save_teacher, texts, word_tokenizer
from training_runs import HALF
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainingArguments,
)

from wid_hf import CalibrationConfig, WidConfig, WidTrainingArguments, get_wid_model
from wid_hf.errors import ConfigError, WidError
from wid_hf.inputs import TextInputs, tokenize
from wid_hf.objectives import Objective, find_objective
from wid_hf.training.imitating_trainer import ImitatingTrainer
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.merged_trainer import MergedTrainer


def rows(count: int = 32) -> Dataset:
    return tokenize(Dataset.from_dict({"text": texts(count)}), word_tokenizer(), max_length=12).select_columns(
        ["input_ids", "attention_mask"]
    )


def teacher_in(folder: Path, kind: type[PreTrainedModel]) -> PreTrainedModel:
    teacher = kind.from_pretrained(save_teacher(folder / "teacher", kind)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in teacher.parameters():  # its outputs differ from text to text
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    return teacher


def started(objective: Objective, config: WidConfig) -> PeftModel:
    model = get_wid_model(objective.teacher, config)
    if not model.base_model.calibrated:
        model.base_model.calibrate([dict(objective.collator([dict(row) for row in rows()]))])
    return model


def arguments(folder: Path, steps: int = 30, accumulation: int = 1) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
    }


def trainer_for(
    objective: Objective, folder: Path, config: WidConfig, steps: int = 30, accumulation: int = 1, **more: Any
) -> MergedTrainer:
    return MergedTrainer(
        started(objective, config),
        TrainingArguments(**arguments(folder, steps, accumulation)),
        imitation=objective.loss,
        reduction=objective.reduction,
        train_dataset=rows(),
        data_collator=DataCollatorWithPadding(word_tokenizer()),
        **more,
    )


CALIBRATED = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(samples=32))


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertModel])
def test_training_brings_it_nearer_and_leaves_the_teacher_alone(tmp_path: Path, kind: type[PreTrainedModel]) -> None:
    teacher = teacher_in(tmp_path, kind)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
    trainer = trainer_for(objective, tmp_path, HALF)
    (batch,) = objective.scored(rows(), 32, 0)

    def loss() -> float:
        with torch.no_grad():
            return trainer.compute_loss(trainer.model.eval(), batch).item()

    start = loss()
    trainer.train()
    assert loss() < 0.7 * start
    assert type(trainer.student) is kind
    assert trainer.student.config.hidden_size == 12
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_it_starts_where_compactors_start_with_the_same_loss(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path, BertModel)
    objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
    trainer = trainer_for(objective, tmp_path, CALIBRATED)
    (batch,) = objective.scored(rows(), 32, 0)
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model.eval(), batch)
        wid = trainer.wid_model.base_model
        wanted = objective.loss(wid, trainer.wid_model.eval()(**batch), teacher(**batch), batch)
    assert wanted.item() > 0
    torch.testing.assert_close(found, wanted)
    assert len([weight for weight in trainer.model.parameters() if weight.requires_grad]) == len(
        list(trainer.model.parameters())
    )


def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(tmp_path: Path) -> None:
    first = []
    for accumulation in (1, 4):
        teacher = teacher_in(tmp_path / str(accumulation), BertForSequenceClassification)
        objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
        trainer = trainer_for(objective, tmp_path, HALF, steps=1, accumulation=accumulation)
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=1e-4)


def test_what_cannot_be_merged_yet_and_a_share_of_labels_that_is_none_are_refused(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path, BertForSequenceClassification)
    objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
    model = get_wid_model(teacher, CALIBRATED)
    with pytest.raises(WidError, match="calibrat"):
        MergedTrainer(model, imitation=objective.loss)
    with pytest.raises(ConfigError, match=r"label_weight=1.0 is not legal"):
        MergedTrainer(model, imitation=objective.loss, label_weight=1.0)
    assert issubclass(ImitatingTrainer, MergedTrainer.__mro__[1])


@pytest.mark.parametrize("losses", [["hidden"], ["relations"], ["hidden", "relations"]])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForTokenClassification])
def test_inner_states_are_compared_as_those_of_compactors_are(
    tmp_path: Path, kind: type[PreTrainedModel], losses: list[str]
) -> None:
    objective = find_objective(teacher := teacher_in(tmp_path, kind))(teacher, TextInputs(word_tokenizer()))
    mine = trainer_for(objective, tmp_path, CALIBRATED, 1, distillation=losses, distillation_weight=2.0)
    theirs = ImitatingTrainer(
        started(objective, CALIBRATED),
        WidTrainingArguments(
            **arguments(tmp_path, 1), teacher_learning_rate=0, distillation=losses, distillation_weight=2.0
        ),
        imitation=objective.loss,
        reduction=objective.reduction,
        train_dataset=rows(),
        data_collator=DataCollatorWithPadding(word_tokenizer()),
    )
    alone = trainer_for(objective, tmp_path, CALIBRATED, 1)
    first = []
    for trainer in (mine, theirs, alone):
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert first[0] > 2 * first[2]


def test_inner_states_come_nearer_where_they_are_compared(tmp_path: Path) -> None:
    errors = []
    for losses in ([], ["hidden"]):
        teacher = teacher_in(tmp_path, BertForSequenceClassification)
        objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
        trainer = trainer_for(objective, tmp_path, CALIBRATED, distillation=losses)
        trainer.train()
        measured = Distillation(trainer.wid_model, ["hidden"], student=trainer.model)
        (batch,) = objective.scored(rows(), 32, 0)
        with measured.watching() as student:
            student.output = trainer.model.eval()(**batch)
        errors.append(measured.loss(student, measured.target(batch), batch).item())
    assert errors[1] < 0.8 * errors[0]


def test_losses_that_a_merged_student_cannot_have_are_refused(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path, BertForSequenceClassification)
    objective = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
    with pytest.raises(ConfigError, match=r"distillation=\['logits'\] is unknown; legal are \"hidden\""):
        trainer_for(objective, tmp_path, CALIBRATED, distillation=["logits"])
