"""Who freezes what: a learning rate of 0, the user, an adapter loaded for inference."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs
from peft import PeftModel
from toys import labelled_rows
from training_runs import HALF
from transformers import BertForMaskedLM, Trainer

from wid_hf import ConfigError, TrainingError, WidCallback, WidConfig, WidTrainer, get_wid_model
from wid_hf.layers import Compactor

arguments = partial(training_runs.arguments, max_steps=2)


def train(model: PeftModel, folder: Path, **given: Any) -> set[str]:
    """Train, and return the names of the parameters that changed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    WidTrainer(model=model, args=arguments(folder, **given), train_dataset=labelled_rows()).train()
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def originals(names: set[str]) -> set[str]:
    return {name for name in names if not name.endswith((".matrix", ".shift"))}


def test_what_the_user_froze_stays_and_its_compactors_train(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.bert.embeddings.requires_grad_(False)
    frozen = {name: p.clone() for name, p in tiny_bert.bert.embeddings.named_parameters()}
    model = get_wid_model(tiny_bert, HALF)
    moved = train(model, tmp_path)
    assert all(torch.equal(frozen[name], p) for name, p in tiny_bert.bert.embeddings.named_parameters())
    assert any("embeddings" in name and name.endswith(".matrix") for name in moved)
    assert any("encoder" in name for name in originals(moved))
    assert not any("embeddings" in name for name in originals(moved))
    assert model.merge_and_unload()


def test_rates_above_zero_do_not_unfreeze(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = get_wid_model(tiny_bert, HALF)
    pooled = model.base_model.model.cls.requires_grad_(False)
    moved = train(model, tmp_path, compactor_learning_rate=1e-2, teacher_learning_rate=1e-3)
    assert moved and not any(".cls." in name and "decoder" not in name for name in moved)
    assert not any(p.requires_grad for p in pooled.parameters())


def test_compactors_that_the_user_froze_stay_frozen(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = get_wid_model(tiny_bert, HALF)
    model.base_model.set_requires_grad("default", False)
    moved = train(model, tmp_path)
    assert moved and moved == originals(moved)


@pytest.mark.slow
def test_what_a_rate_froze_a_later_rate_may_train(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.bert.embeddings.requires_grad_(False)
    model = get_wid_model(tiny_bert, HALF)
    assert not originals(train(model, tmp_path, teacher_learning_rate=0))
    moved = train(model, tmp_path, teacher_learning_rate=1e-3)
    assert originals(moved) and not any("embeddings" in name for name in originals(moved))
    assert train(model, tmp_path, compactor_learning_rate=0) == originals(moved)
    assert train(model, tmp_path) > originals(moved)


@pytest.mark.slow
def test_another_student_of_a_teacher_frozen_by_a_rate_may_train_it(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    train(get_wid_model(tiny_bert, HALF), tmp_path, teacher_learning_rate=0)
    assert originals(train(get_wid_model(tiny_bert, WidConfig(hidden_size=20, init="identity")), tmp_path))


def test_evaluating_freezes_only_by_rate(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.bert.embeddings.requires_grad_(False)
    model = get_wid_model(tiny_bert, HALF)
    modes = {name: p.requires_grad for name, p in model.named_parameters()}
    WidTrainer(model=model, args=arguments(tmp_path), eval_dataset=labelled_rows()).evaluate()
    assert modes == {name: p.requires_grad for name, p in model.named_parameters()}


def test_a_rate_without_effect_is_told(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.requires_grad_(False)
    with pytest.warns(UserWarning, match="teacher_learning_rate=0.001 has no effect"):
        moved = train(get_wid_model(tiny_bert, HALF), tmp_path, teacher_learning_rate=1e-3)
    assert moved and not originals(moved)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Trainer, WidTrainer])
def test_an_adapter_loaded_for_inference_is_not_trained(kind: Any, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    teacher = deepcopy(tiny_bert)
    get_wid_model(tiny_bert, HALF).save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(teacher, tmp_path / "adapter")
    more = {"callbacks": [WidCallback()]} if kind is Trainer else {}
    args = arguments(tmp_path, eval_strategy="no")
    trainer = kind(model=model, args=args, train_dataset=labelled_rows(), eval_dataset=labelled_rows(), **more)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(TrainingError, match="is_trainable=True"):
        trainer.train()
    assert not any(p.requires_grad for p in model.parameters())
    trainable = PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path / "adapter", is_trainable=True)
    assert train(trainable, tmp_path)


def test_nothing_that_could_train_is_refused_before_training(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = get_wid_model(tiny_bert, WidConfig(hidden_size=12)).requires_grad_(False)
    trainer = WidTrainer(model=model, args=arguments(tmp_path), train_dataset=labelled_rows())
    with pytest.raises(TrainingError, match=r"every weight of the model is frozen.*requires_grad_\(True\)"):
        trainer.train()
    assert not model.base_model.calibrated and trainer.state.global_step == 0
    tiny_bert.requires_grad_(False)
    model = get_wid_model(tiny_bert, HALF)
    with pytest.raises(TrainingError, match="every weight"):
        train(model, tmp_path, compactor_learning_rate=0)


def test_a_teacher_that_is_frozen_needs_no_rate_to_be_so(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.requires_grad_(False)
    model = get_wid_model(tiny_bert, HALF)
    trainer = WidTrainer(model=model, args=arguments(tmp_path), train_dataset=labelled_rows())
    held = {p for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert held == {p for m in model.modules() if isinstance(m, Compactor) for p in m.parameters()}


@pytest.mark.parametrize(
    "given",
    [
        {"teacher_learning_rate": -1.0},
        {"compactor_learning_rate": 0, "teacher_learning_rate": 0},
        {"distillation": ["logit"]},
        {"distillation_weight": 0.0},
        {"distillation": ["logits"]},
    ],
)
def test_arguments_that_cannot_be_are_errors_of_wid(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        arguments(tmp_path, **given)
