"""WidTrainer: learning rates, exactness of the merge, resuming, and a loss that is not finite."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from training_runs import HALF, arguments, logits, masked_rows
from transformers import BertForMaskedLM, TrainerCallback, TrainingArguments

from wid_hf import CalibrationConfig, TrainingError, WidConfig, WidError, WidTrainer, get_wid_model
from wid_hf.layers import Compactor


def run(teacher: BertForMaskedLM, args: TrainingArguments, rows: Dataset | None = None) -> WidTrainer:
    trainer = WidTrainer(model=get_wid_model(teacher, HALF), args=args, train_dataset=rows or masked_rows())
    trainer.train()
    return trainer


def test_each_kind_of_weight_has_its_learning_rate_and_the_usual_decay(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    args = arguments(tmp_path, compactor_learning_rate=3e-3, teacher_learning_rate=2e-4, weight_decay=0.1)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    groups = trainer.create_optimizer().param_groups
    names = {p: n for n, p in trainer.model.named_parameters()}
    compactors = {p for m in trainer.model.modules() if isinstance(m, Compactor) for p in m.parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            seen.add(parameter)
            is_compactor = parameter in compactors
            plain = "bias" in names[parameter] or "LayerNorm" in names[parameter]
            assert group["lr"] == (3e-3 if is_compactor else 2e-4), names[parameter]
            if not is_compactor:
                assert group["weight_decay"] == (0.0 if plain else 0.1), names[parameter]
    assert seen == set(names)
    assert all(group["weight_decay"] == 0.1 for group in groups if group["lr"] == 3e-3)


def test_plain_arguments_train_everything_at_one_learning_rate(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=7e-4, use_cpu=True, report_to="none")
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {7e-4}


def test_learning_rate_zero_freezes_the_teacher_bit_for_bit(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    before = deepcopy(tiny_bert.state_dict())
    start = {n: p.clone() for n, p in get_wid_model(tiny_bert, HALF).named_parameters() if n.endswith(".matrix")}
    trainer = run(tiny_bert, arguments(tmp_path, teacher_learning_rate=0))
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_bert.state_dict().items())
    moved = [not torch.equal(start[n], p) for n, p in trainer.model.named_parameters() if n in start]
    assert all(moved)
    held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not held & set(tiny_bert.parameters())


def test_learning_rate_zero_freezes_compactors(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    before = deepcopy(tiny_bert.state_dict())
    trainer = run(tiny_bert, arguments(tmp_path, compactor_learning_rate=0))
    for module in trainer.model.modules():
        if isinstance(module, Compactor):
            assert set(module.matrix.unique().tolist()) <= {0.0, 1.0} or module.matrix.count_nonzero() == len(
                module.matrix
            )
    assert not torch.equal(
        before["bert.embeddings.word_embeddings.weight"], tiny_bert.bert.embeddings.word_embeddings.weight
    )


def test_training_lowers_the_loss_and_the_merged_student_is_exactly_the_trained_one(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    trainer = run(tiny_bert, arguments(tmp_path, max_steps=30))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    student = trainer.model.merge_and_unload()
    assert type(student) is BertForMaskedLM
    assert (logits(trainer.model) - logits(student)).abs().max().item() == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [4, 8])
def test_accumulated_micro_batches_equal_one_batch(
    tiny_bert: BertForMaskedLM, tmp_path: Path, accumulation: int
) -> None:
    tiny_bert.config.hidden_dropout_prob = tiny_bert.config.attention_probs_dropout_prob = 0.0
    teachers = [deepcopy(tiny_bert), deepcopy(tiny_bert)]
    sgd = {"optim": "sgd", "max_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 0.0}
    whole = run(teachers[0], arguments(tmp_path, per_device_train_batch_size=16, **sgd))
    parts = run(
        teachers[1],
        arguments(
            tmp_path, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation, **sgd
        ),
    )
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_half_the_steps_and_a_resume_equal_all_steps_bit_for_bit(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    teachers = [deepcopy(tiny_bert), deepcopy(tiny_bert), deepcopy(tiny_bert)]
    given = {"max_steps": 6, "lr_scheduler_type": "linear"}
    whole = run(teachers[0], arguments(tmp_path / "whole", **given))

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    saving = arguments(tmp_path / "parts", save_strategy="steps", save_steps=3, **given)
    first = WidTrainer(
        model=get_wid_model(teachers[1], HALF), args=saving, train_dataset=masked_rows(), callbacks=[Stop()]
    )
    first.train()
    second = WidTrainer(model=get_wid_model(teachers[2], HALF), args=saving, train_dataset=masked_rows())
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert second.state.global_step == 6
    for (name, a), (_, b) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_loss_that_is_not_finite_stops_training_at_the_last_good_weights(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):
        """Breaks the model after its third step, as a learning rate far too high would."""

        def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
            weights = [p.detach().clone() for p in model.parameters()]
            if state.global_step == 2:
                good.extend(weights)
            if state.global_step == 3:
                with torch.no_grad():
                    next(p for n, p in model.named_parameters() if n.endswith(".matrix")).fill_(float("nan"))

    good: list[torch.Tensor] = []
    args = arguments(tmp_path, max_steps=6, logging_steps=2)
    model = get_wid_model(tiny_bert, HALF)
    trainer = WidTrainer(model=model, args=args, train_dataset=masked_rows(), callbacks=[Poison()])
    with pytest.raises(TrainingError, match=r"became nan after 3 of 6 steps.*back at its weights after step 2"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(good, model.parameters(), strict=True))


def test_a_loss_that_never_was_finite_leaves_the_weights_as_they_were(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_bert.cls.predictions.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"after 0 of 4 steps.*No step had a finite loss"):
        run(tiny_bert, arguments(tmp_path))


def test_a_model_that_is_no_wid_model_is_refused(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    with pytest.raises(WidError, match=r"not a BertForMaskedLM\. Call get_wid_model"):
        WidTrainer(model=tiny_bert, args=arguments(tmp_path))


@pytest.mark.parametrize(
    ("compactors", "teacher", "words"), [(0, 0, "nothing would train"), (-1e-3, None, "must be 0 or more")]
)
def test_learning_rates_that_cannot_be_are_refused(
    tmp_path: Path, compactors: float, teacher: float | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, compactor_learning_rate=compactors, teacher_learning_rate=teacher)


CALIBRATED = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(48, 16))


@pytest.mark.slow
def test_a_start_that_nobody_calibrated_is_calibrated_on_the_training_set(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = get_wid_model(tiny_bert, CALIBRATED)
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0, weight_decay=0.0)
    trainer = WidTrainer(model=model, args=args, train_dataset=masked_rows(200))
    batches = list(trainer.calibration_batches())
    assert [len(batch["input_ids"]) for batch in batches] == [16, 16, 16]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()
    assert model.base_model.calibrated
    by_hand = get_wid_model(tiny_bert, CALIBRATED, calibration_data=batches)
    assert torch.equal(logits(model), logits(by_hand))
    assert model.base_model.calibration.positions == 48 * 8
    before = {n: p.clone() for n, p in model.named_parameters()}
    WidTrainer(model=model, args=args, train_dataset=masked_rows(64, length=9)).train()  # not again
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_taking_calibration_rows_does_not_move_the_random_state(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    rows = masked_rows(64)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, CALIBRATED), args=arguments(tmp_path), train_dataset=rows)
    state = torch.get_rng_state()
    first, second = (torch.cat([b["input_ids"] for b in trainer.calibration_batches()]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second) and len(first) == 48


def test_a_run_that_is_resumed_keeps_its_own_calibration(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    teachers = [deepcopy(tiny_bert), deepcopy(tiny_bert), deepcopy(tiny_bert)]
    given = {"max_steps": 4, "lr_scheduler_type": "linear", "learning_rate": 1e-3}
    rows = masked_rows(64)

    def trainer(teacher: BertForMaskedLM, **others: Any) -> WidTrainer:
        args = arguments(tmp_path / "parts", **{**given, **others})
        return WidTrainer(model=get_wid_model(teacher, CALIBRATED), args=args, train_dataset=rows)

    whole = trainer(teachers[0])
    whole.train()
    first = trainer(teachers[1], save_strategy="steps", save_steps=2)
    first.train()
    second = trainer(teachers[2])
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert second.model.base_model.calibrated and second.model.base_model.calibration is None
    assert second.model.base_model.kept_outputs() == whole.model.base_model.kept_outputs()
    for (name, a), (_, b) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_shifts_learn_with_the_compactors(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = arguments(tmp_path, compactor_learning_rate=3e-3, teacher_learning_rate=2e-4)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, CALIBRATED), args=args, train_dataset=masked_rows())
    rates = {p: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    shifts = [p for name, p in trainer.model.named_parameters() if name.endswith(".shift")]
    # 6 matrices with a bias in each of two layers and one in the head; weight and bias of 6 norms in a turned stream
    assert len(shifts) == 25 and {rates[p] for p in shifts} == {3e-3}
