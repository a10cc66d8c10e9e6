"""What objectives of images and sounds compare: losses from the teacher, and figures of students like it or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from imitations import imitating_trainer
from media import KINDS, SAID, objective_of, rows_of, teacher_of
from training_runs import HALF

from wid_hf import get_wid_model
from wid_hf.objectives import Objective

SAME = {"agreement": 1, "divergence": 0}
SAME_VECTORS = {"cosine_correlation": 1, "top1_agreement": 1}
BEST: dict[str, dict[str, float]] = {
    **dict.fromkeys(("images", "sounds", "speech"), SAME),
    **dict.fromkeys(("image features", "sound features"), SAME_VECTORS),
}
LABELS: dict[str, dict[str, list[Any]]] = {
    "images": {"label": [0, 2, 1, 2] * 4},
    "sounds": {"label": [0, 2, 1, 2] * 4},
    "speech": {"target": [SAID[number % len(SAID)] for number in range(16)]},
}
OWN = {"images": {"accuracy"}, "sounds": {"accuracy"}, "speech": {"word_error_rate", "character_error_rate"}}


def features(name: str, folder: Path, objective: Objective, *, labelled: bool = False) -> Dataset:
    return objective.features(rows_of(name, folder, **(LABELS[name] if labelled else {})), 12)


@pytest.mark.parametrize("name", KINDS)
def test_a_teacher_agrees_with_itself_and_another_model_does_not(name: str, tmp_path: Path) -> None:
    objective, best = objective_of(name, tmp_path), BEST[name]
    batches = objective.scored(features(name, tmp_path, objective), 8, 0)
    wanted = objective.wanted(batches)
    assert objective.score(objective.teacher, batches, wanted) == pytest.approx(best, abs=1e-5)
    found = objective.score(teacher_of(name, 1), batches, wanted)
    assert found.keys() == best.keys()
    worse = {figure: found[figure] - value if value == 0 else value - found[figure] for figure, value in best.items()}
    assert min(worse.values()) > 0.1, found


@pytest.mark.parametrize("name", LABELS)
def test_with_labels_the_models_own_figures_are_given_too(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    batches = objective.scored(features(name, tmp_path, objective, labelled=True), 8, 0)
    found = objective.score(objective.teacher, batches, objective.wanted(batches))
    assert OWN[name] | SAME.keys() <= found.keys()
    own = {figure: value for figure, value in found.items() if figure not in SAME}
    assert objective.score(objective.teacher, batches, None) == own


@pytest.mark.parametrize("name", KINDS)
def test_without_labels_and_a_teacher_there_are_no_figures(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    batches = objective.scored(features(name, tmp_path, objective), 8, 0)
    assert objective.score(objective.teacher, batches, None) == {}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_zero_for_equal_outputs_and_not_for_others(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    (batch, _) = objective.scored(features(name, tmp_path, objective), 8, 0)
    wid: Any = get_wid_model(objective.teacher, HALF).base_model
    wid.map_outputs = lambda states: states
    with torch.no_grad():
        mine, theirs = (model(**batch) for model in (teacher_of(name, 1), objective.teacher))
        assert objective.loss(wid, theirs, theirs, batch).item() == pytest.approx(0, abs=1e-5)
        assert objective.loss(wid, mine, theirs, batch).item() > 0.1


@pytest.mark.parametrize("name", [name for name in KINDS if "image" not in name])
def test_padding_of_sounds_does_not_count(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    (batch, _) = objective.scored(features(name, tmp_path, objective), 8, 0)
    longer = {key: torch.nn.functional.pad(tensor, (0, 90)) for key, tensor in batch.items()}
    wid: Any = get_wid_model(objective.teacher, HALF).base_model
    wid.map_outputs = lambda states: states
    losses, other = [], teacher_of(name, 1)
    for given in (batch, longer):
        with torch.no_grad():
            losses.append(objective.loss(wid, other(**given), objective.teacher(**given), given).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    scores = [objective.score(other, [given], objective.wanted([batch])) for given in (batch, longer)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", LABELS)
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(name: str, label_weight: float, tmp_path: Path) -> None:
    first = []
    for accumulation in (1, 4):
        objective = objective_of(name, tmp_path)
        data = features(name, tmp_path, objective, labelled=True)
        trainer = imitating_trainer(objective, tmp_path, data, accumulation=accumulation, label_weight=label_weight)
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_training_brings_a_student_nearer_and_leaves_the_teacher_alone(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    data = features(name, tmp_path, objective)
    before = {key: tensor.clone() for key, tensor in objective.teacher.state_dict().items()}
    trainer = imitating_trainer(objective, tmp_path, data, steps=30)
    (batch,) = objective.scored(data, 16, 0)

    def loss() -> float:
        trainer.model.eval()
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, batch).item()

    start = loss()
    trainer.train()
    assert loss() < 0.7 * start
    assert all(torch.equal(before[key], tensor) for key, tensor in objective.teacher.state_dict().items())


@pytest.mark.parametrize("name", LABELS)
def test_the_loss_is_the_weighted_mean_of_that_from_the_teacher_and_that_on_labels(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    data = features(name, tmp_path, objective, labelled=True)
    batch, losses = objective.collator([dict(row) for row in data]), {}
    for weight in (0.0, 0.25):
        trainer = imitating_trainer(objective, tmp_path, data, label_weight=weight)
        losses[weight] = trainer.compute_loss(trainer.model.train(), dict(batch)).item()
    own = trainer.model(**batch).loss.item()
    assert own > 0.01
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * own, rel=1e-4)
