"""Following the teacher's own originals: the loss, what it keeps, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import save_teacher, texts, word_tokenizer
from training_runs import HALF, arguments
from transformers import BertModel, DataCollatorWithPadding

from wid_hf import FollowingTrainer, WidError, WidTrainingArguments, get_wid_model
from wid_hf.inputs import tokenize
from wid_hf.training.losses.following import following_loss


def rows(count: int = 32) -> Dataset:
    tokens = tokenize(Dataset.from_dict({"text": texts(count)}), word_tokenizer(), max_length=12)
    return tokens.select_columns(["input_ids", "attention_mask"])


def trainer_for(teacher: BertModel, folder: Path, steps: int = 60, accumulation: int = 1) -> FollowingTrainer:
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0  # its noise hides progress
    args = arguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        compactor_learning_rate=3e-3,
        teacher_learning_rate=0,
    )
    return FollowingTrainer(
        get_wid_model(teacher, HALF),
        args,
        train_dataset=rows(),
        data_collator=DataCollatorWithPadding(word_tokenizer()),
    )


def test_the_loss_is_zero_for_a_student_that_keeps_everything() -> None:
    states = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert following_loss(states, states, states, torch.ones(3, 5), 1.0).item() == pytest.approx(0, abs=1e-10)


def test_the_loss_is_one_where_hidden_states_are_zero_and_cosines_do_not_count() -> None:
    states = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    wanted = states[..., [1, 4, 6]]
    assert following_loss(torch.zeros(3, 5, 3), wanted, states, torch.ones(3, 5), 0.0).item() == pytest.approx(1)


def test_padding_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0]]).repeat(3, 1)
    clean = following_loss(student, teacher[..., :4], teacher, mask, 1.0)
    student[:, 3:], teacher[:, 3:] = 1e3, -1e3
    assert torch.equal(following_loss(student, teacher[..., :4], teacher, mask, 1.0), clean)


def test_the_loss_follows_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, generator=generator), torch.randn(2, 3, 4, generator=generator)
    kept, mask = torch.tensor([0, 2]), torch.ones(2, 3)
    hidden = (student - teacher[..., kept]).square().sum() / teacher[..., kept].square().sum()
    a, b = student.mean(1), teacher.mean(1)
    cos_s, cos_t = (v[0] @ v[1] / v[0].norm() / v[1].norm() for v in (a, b))
    expected = hidden + 0.5 * (cos_s - cos_t).square()
    assert following_loss(student, teacher[..., kept], teacher, mask, 0.5).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.slow
def test_training_brings_the_student_closer_and_leaves_the_teacher_alone(tmp_path: Path) -> None:
    teacher = BertModel.from_pretrained(save_teacher(tmp_path / "teacher", BertModel))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = trainer_for(teacher, tmp_path)
    batch = dict(DataCollatorWithPadding(word_tokenizer())([dict(row) for row in rows()]))

    def loss() -> float:
        trainer.model.eval()
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, batch).item()

    start = loss()
    trainer.train()
    assert loss() < 0.7 * start
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_target_is_the_same_tensors_and_no_second_copy(tmp_path: Path) -> None:
    teacher = BertModel.from_pretrained(save_teacher(tmp_path / "teacher", BertModel))
    trainer = trainer_for(teacher, tmp_path)
    assert trainer.teacher is teacher
    originals = {id(p) for n, p in trainer.model.named_parameters() if n.endswith(".original")}
    assert originals <= {id(p) for p in teacher.parameters()}


def test_the_logged_loss_does_not_grow_with_accumulation(tmp_path: Path) -> None:
    first = []
    for accumulation in (1, 4):
        teacher = BertModel.from_pretrained(save_teacher(tmp_path / f"teacher{accumulation}", BertModel))
        trainer = trainer_for(teacher, tmp_path, steps=1, accumulation=accumulation)
        trainer.cosine_weight = 0.0  # pairs lie within a micro-batch, so only the first term can agree
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=0.1)


def test_the_weight_of_the_cosines_may_change_between_trainings(tmp_path: Path) -> None:
    trainer = trainer_for(BertModel.from_pretrained(save_teacher(tmp_path / "teacher", BertModel)), tmp_path)
    batch = dict(DataCollatorWithPadding(word_tokenizer())([dict(row) for row in rows()]))
    losses = []
    for trainer.cosine_weight in (0.0, 1.0, 3.0):
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model.eval(), batch).item())
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-3)
    assert losses[1] > losses[0]


def test_a_teacher_that_would_train_is_refused(tmp_path: Path) -> None:
    teacher = BertModel.from_pretrained(save_teacher(tmp_path / "teacher", BertModel))
    args = WidTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(WidError, match="teacher_learning_rate=0"):
        FollowingTrainer(get_wid_model(teacher, HALF), args)
