"""Losses from the teacher of tasks that are about more than one text, as they are used in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from encoder_decoders import HALF_BART, HALF_T5, bart, m2m, t5
from imitations import imitating_trainer, teacher_of
from task_rows import prompts, questions, sources
from torch import Tensor
from toys import word_tokenizer
from training_runs import HALF
from transformers import BertForMultipleChoice, BertForQuestionAnswering, PreTrainedModel

from wid_hf import WidConfig
from wid_hf.inputs import TextInputs
from wid_hf.objectives import Objective, find_objective
from wid_hf.objectives.logits import inputs_of


class Case(NamedTuple):
    """A teacher, its rows, and the student that is half as wide."""

    teacher: Callable[[int], PreTrainedModel]
    rows: Callable[..., dict[str, list[Any]]]
    half: WidConfig = HALF


def loud(kind: type[PreTrainedModel]) -> Callable[[int], PreTrainedModel]:
    """Teachers whose scores are compared along a text or along choices, of which random ones make little difference."""

    def teacher(seed: int) -> PreTrainedModel:
        made = teacher_of(kind, seed)
        with torch.no_grad():
            [*made.children()][-1].weight.mul_(30)
        return made

    return teacher


CASES = {
    "spans": Case(loud(BertForQuestionAnswering), questions),
    "choices": Case(loud(BertForMultipleChoice), prompts),
    "t5": Case(t5, sources, HALF_T5),
    "bart": Case(bart, sources, HALF_BART),
    "m2m": Case(m2m, sources, HALF_BART),
}


def objective_of(teacher: PreTrainedModel) -> Objective:
    return find_objective(teacher)(teacher, TextInputs(word_tokenizer()))


def data_of(objective: Objective, case: Case, labelled: bool, count: int = 16) -> Dataset:
    return objective.features(Dataset.from_dict(case.rows(count, labelled)), 12)


def with_more_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with more padding, in encoder and decoder."""
    more = {name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in inputs_of(batch).items()}
    return {**batch, **more}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_zero_for_equal_outputs_and_the_same_for_rows_with_more_padding(name: str, labelled: bool) -> None:
    case = CASES[name]
    teacher, other = (case.teacher(seed) for seed in range(2))
    objective = objective_of(teacher)
    batch, *_ = objective.scored(data_of(objective, case, labelled), 8, 0)
    losses = []
    for given in map(inputs_of, (batch, with_more_padding(batch))):
        with torch.no_grad():
            mine, theirs = (model(**given) for model in (other, teacher))
        assert objective.loss(None, theirs, theirs, given).item() == pytest.approx(0, abs=1e-5)  # type: ignore[arg-type]
        losses.append(objective.loss(None, mine, theirs, given).item())  # type: ignore[arg-type]
    assert losses[0] > 0.01
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", ["spans", "choices", "t5", "bart"])
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(name: str, label_weight: float, tmp_path: Path) -> None:
    case = CASES[name]
    first = []
    for accumulation in (1, 4):
        objective = objective_of(case.teacher(0))
        data = data_of(objective, case, bool(label_weight))
        trainer = imitating_trainer(
            objective, tmp_path, data, case.half, accumulation=accumulation, label_weight=label_weight
        )
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("name", ["spans", "choices", "t5", "bart"])
def test_the_loss_is_the_weighted_mean_of_that_from_the_teacher_and_that_on_labels(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    objective = objective_of(case.teacher(0))
    data = data_of(objective, case, True)
    batch, *_ = objective.scored(data, 8, 0)
    given = {name: tensor for name, tensor in batch.items() if isinstance(tensor, Tensor)}
    losses = {}
    for weight in (0.0, 0.25):
        trainer = imitating_trainer(objective, tmp_path, data, case.half, label_weight=weight)
        losses[weight] = trainer.compute_loss(trainer.model.train(), dict(given)).item()
    own = trainer.model(**given).loss.item()
    assert own > 0.01
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * own, rel=1e-4)


@pytest.mark.parametrize("name", ["spans", "choices", "t5", "bart"])
def test_training_brings_a_student_nearer_and_leaves_the_teacher_alone(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    teacher = case.teacher(0)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    objective = objective_of(teacher)
    data = data_of(objective, case, False, 32)
    trainer = imitating_trainer(objective, tmp_path, data, case.half, steps=25)
    batch, *_ = objective.scored(data, 32, 0)

    def loss() -> float:
        trainer.model.eval()
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, inputs_of(batch)).item()

    start = loss()
    trainer.train()
    assert loss() < 0.7 * start
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
