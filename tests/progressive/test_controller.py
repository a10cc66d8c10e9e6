"""Progressive training: what is dropped fades to zero, the model shrinks without a jump, and every phase resumes."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, every_case
from peft import PeftModel
from torch import Tensor, nn
from toys import noisy
from training_runs import arguments, masked_rows
from transformers import AutoModelForMaskedLM, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from wid_hf import (
    ConfigError,
    TrainingError,
    WidCallback,
    WidConfig,
    WidError,
    WidSchedule,
    WidTrainer,
    get_wid_model,
    plan_student,
)
from wid_hf.coupling.index_sets import axis_indices
from wid_hf.layers import Compactor
from wid_hf.planning.empty_student import empty_student
from wid_hf.progressive.controller import ProgressiveController

# Choices at steps 2, 4, 6 and 8, all rows zero at step 11, 16 steps in all.
SHORT = WidSchedule(mask_interval=2, mask_increments=4, decay_to_zero_steps=3)
BY_NORM = replace(SHORT, selection="norm")  # which needs no gradients
IDS = {"input_ids": torch.arange(21).view(3, 7) + 5}


def half(schedule: WidSchedule = SHORT, strategy: Any = "dim", **sizes: int) -> WidConfig:
    return WidConfig(**{"hidden_size": 12, "intermediate_size": 24, **sizes}, head_strategy=strategy, schedule=schedule)


def trained(
    teacher: BertForMaskedLM,
    folder: Path,
    config: WidConfig | None = None,
    stop: int | None = None,
    resume: str | None = None,
    **given: Any,
) -> WidTrainer:
    """Train for 16 steps, or stop after a checkpoint as if the power had gone."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == stop

    defaults: dict[str, Any] = {"max_steps": 16, "lr_scheduler_type": "linear", "learning_rate": 3e-3}
    trainer = WidTrainer(
        model=get_wid_model(teacher, config or half()),
        args=arguments(folder, **{**defaults, **given}),
        train_dataset=masked_rows(),
        callbacks=[Stop()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def outputs(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result = model(**(inputs or IDS))[0]
    model.train(was_training)
    return result


@every_case
def test_the_wide_model_starts_as_the_teacher(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    teacher = row.build()
    wide = get_wid_model(teacher, progressive(row, strategy), example_inputs=row.inputs)
    assert torch.allclose(outputs(wide, row.inputs), outputs(teacher, row.inputs), atol=1e-5, rtol=1e-5)
    assert wide.base_model.is_wide


@every_case
def test_once_rows_are_zero_the_wide_model_equals_the_shrunk_one(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    wid = get_wid_model(row.build(), progressive(row, strategy), example_inputs=row.inputs)
    noisy(wid, 0.1)
    for step in range(1, 12):  # without an optimizer, so it stays wide
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wid.wid_step(step)
    tuner = wid.base_model
    assert tuner.is_wide and tuner.progress.finished
    before = outputs(wid, row.inputs)
    student = wid.merge_and_unload()
    dims, kept = tuner.student_plan.trace.output_dims[0], tuner.progress.index_sets()
    for axis, dim in enumerate(dims):
        before = before.index_select(axis, torch.tensor(axis_indices(tuner.plan, dim, kept)))
    after = outputs(student, row.inputs)
    assert (before - after).abs().max() <= 1e-5 * after.abs().max()
    assert after.std() > 0.01


def progressive(row: Any, strategy: str) -> WidConfig:
    return WidConfig(**row.halved, head_strategy=strategy, schedule=BY_NORM)


@pytest.mark.parametrize("penalty", ["decoupled", "adam_moment"])
@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_the_loss_does_not_jump_when_the_model_shrinks(tiny_bert: BertForMaskedLM, strategy: str, penalty: Any) -> None:
    tiny_bert.config._attn_implementation = "eager"
    schedule = WidSchedule(mask_interval=2, mask_increments=4, decay_to_zero_steps=3, penalty=penalty)
    model = get_wid_model(tiny_bert, half(schedule, strategy))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = masked_rows().with_format("torch")[:]
    for step in range(1, 17):
        model(**rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 11:
            model.base_model.controller._optimizer = None  # so the rows go to zero but the model stays wide
            with pytest.warns(UserWarning, match="stays at the teacher's widths"):
                assert not model.wid_step(step)
            before = float(model.eval()(**rows).loss.detach())
        if step in (1, 11):
            model.wid_begin(16, optimizer)
        shrank = model.wid_step(step)
        assert shrank == (step == 11)
        if shrank:
            after = float(model(**rows).loss.detach())
            assert after == pytest.approx(before, rel=1e-6)
            model.train()
    assert not model.base_model.is_wide
    student = model.merge_and_unload()
    assert torch.equal(outputs(student), outputs(model))
    assert student.config.hidden_size == 12


def test_moments_are_carried_to_the_rows_that_are_kept(tiny_bert: BertForMaskedLM) -> None:
    """One more step after shrinking equals one more step of the wide model, compared where both have rows."""
    rows = masked_rows().with_format("torch")[:]
    after: list[PeftModel] = []
    for shrinks in (False, True):
        model = get_wid_model(deepcopy(tiny_bert), half(BY_NORM))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
        model.wid_begin(16, optimizer)
        for step in range(1, 13):
            model(**rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 11 and not shrinks:
                model.wid_begin(16)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.wid_step(step)
        after.append(model)
    wide, narrow = (outputs(model) for model in after)
    assert after[0].base_model.is_wide and not after[1].base_model.is_wide
    assert torch.allclose(wide, narrow, atol=2e-5)
    assert not torch.equal(outputs(tiny_bert), narrow)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        lambda p: __import__("transformers").Adafactor(p, lr=1e-3, relative_step=False, scale_parameter=False),
    ],
    ids=["amsgrad", "fused", "sgd", "adafactor"],
)
def test_every_optimizer_goes_on_after_the_shrink(tiny_bert: BertForMaskedLM, make: Any) -> None:
    model = get_wid_model(tiny_bert, half())
    optimizer = make(list(model.parameters()))
    model.wid_begin(16, optimizer)
    rows = masked_rows().with_format("torch")[:]
    for step in range(1, 15):
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.wid_step(step)
    live = {p for p in model.parameters() if p.requires_grad}
    assert {p for group in optimizer.param_groups for p in group["params"]} == live
    assert set(optimizer.state) <= live
    assert torch.isfinite(loss)


def test_moments_in_blocks_of_8_bits_start_from_zero_with_a_warning(tiny_bert: BertForMaskedLM) -> None:
    """As bitsandbytes and torchao keep them: rows cannot be cut out of blocks."""
    model = get_wid_model(tiny_bert, half())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.wid_begin(16, optimizer)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"state1": torch.zeros(parameter.numel(), dtype=torch.uint8)}
    with pytest.warns(UserWarning, match=r"SGD has moments in a form from which rows cannot be taken; those of \d+"):
        for step in range(1, 12):
            model.wid_step(step)
    assert not model.base_model.is_wide
    live = dict(model.named_parameters())
    compactors = [p for name, p in live.items() if name.endswith(".matrix")]
    assert compactors and not any(p in optimizer.state for p in compactors)
    assert all(p in optimizer.state for name, p in live.items() if not name.endswith(".matrix"))


@pytest.mark.parametrize(
    "at", [3, 10, *(pytest.param(at, marks=pytest.mark.slow) for at in (6, 9, 11, 13))], ids=lambda at: f"step {at}"
)
def test_half_the_steps_and_a_resume_equal_all_steps_bit_for_bit_in_every_phase(
    tiny_bert: BertForMaskedLM, tmp_path: Path, at: int
) -> None:
    whole = trained(deepcopy(tiny_bert), tmp_path / "whole")
    saving = {"save_strategy": "steps", "save_steps": at}
    trained(deepcopy(tiny_bert), tmp_path / "parts", stop=at, **saving)
    again = trained(
        deepcopy(tiny_bert), tmp_path / "parts", resume=str(tmp_path / "parts" / f"checkpoint-{at}"), **saving
    )
    same(whole, again)


def one_step(model: PeftModel, step: int, optimizer: torch.optim.Optimizer) -> None:
    model(**masked_rows().with_format("torch")[:]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.wid_step(step)


PHASES = {
    0: "untouched",
    1: "no choice yet",
    3: "growth",
    8: "the last choice",
    10: "decay",
    11: "shrunk",
    14: "narrow",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "schedule"),
    [
        *(pytest.param(at, {}, id=phase) for at, phase in PHASES.items()),
        *(pytest.param(at, {"penalty": "adam_moment"}, id=f"adam moment, {PHASES[at]}") for at in (3, 10)),
        *(pytest.param(at, {"selection": "importance"}, id=f"importance, {PHASES[at]}") for at in (3, 10)),
    ],
)
def test_an_adapter_saved_in_any_phase_has_equal_logits_and_an_equal_next_step(
    tiny_bert: BertForMaskedLM, tmp_path: Path, at: int, schedule: Any
) -> None:
    config = half(WidSchedule(mask_interval=2, mask_increments=4, decay_to_zero_steps=3, **schedule))
    saved = get_wid_model(deepcopy(tiny_bert), config).eval()
    optimizer = torch.optim.AdamW(saved.parameters(), lr=3e-3)
    saved.wid_begin(16, optimizer)
    for step in range(1, at + 1):
        one_step(saved, step, optimizer)
    saved.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert, tmp_path, is_trainable=True).eval()
    assert loaded.base_model.is_wide == saved.base_model.is_wide == (at < 11)
    assert torch.equal(outputs(loaded), outputs(saved))
    before = outputs(loaded)
    for model in (saved, loaded):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # an adapter holds no moments
        model.wid_begin(16, optimizer)
        one_step(model, at + 1, optimizer)
    ours, theirs = saved.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert loaded.base_model.is_wide == (at < 10)
    assert torch.equal(outputs(loaded), outputs(saved))
    assert outputs(loaded).shape != before.shape or not torch.equal(outputs(loaded), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs", [{"penalty": "adam_moment"}, {"selection": "importance"}], ids=lambda kwargs: str(*kwargs.values())
)
@pytest.mark.parametrize("at", [11, pytest.param(5, marks=pytest.mark.slow)])
def test_other_schedules_resume_bit_for_bit_too(
    tiny_bert: BertForMaskedLM, tmp_path: Path, kwargs: Any, at: int
) -> None:
    config = half(WidSchedule(mask_interval=2, mask_increments=4, decay_to_zero_steps=3, **kwargs), "head")
    saving = {"save_strategy": "steps", "save_steps": at}
    whole = trained(deepcopy(tiny_bert), tmp_path / "whole", config)
    trained(deepcopy(tiny_bert), tmp_path / "parts", config, stop=at, **saving)
    again = trained(
        deepcopy(tiny_bert), tmp_path / "parts", config, resume=str(tmp_path / "parts" / f"checkpoint-{at}"), **saving
    )
    same(whole, again)


def same(whole: WidTrainer, again: WidTrainer) -> None:
    """Assert that two finished trainings agree bit for bit: weights, sets, optimizer, learning rates."""
    assert whole.state.global_step == again.state.global_step == 16
    ours, theirs = whole.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    mine, other = whole.optimizer.state_dict(), again.optimizer.state_dict()
    assert str(mine["param_groups"]) == str(other["param_groups"])
    assert mine["state"].keys() == other["state"].keys()
    for key, state in mine["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][key][name])), (key, name)
    assert whole.lr_scheduler.state_dict() == again.lr_scheduler.state_dict()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 16


@pytest.mark.slow
def test_accumulation_and_checkpointing_go_through_the_shrink(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    tiny_bert.config.hidden_dropout_prob = tiny_bert.config.attention_probs_dropout_prob = 0.0
    tiny_bert = BertForMaskedLM._from_config(tiny_bert.config)
    plain = trained(deepcopy(tiny_bert), tmp_path / "plain")
    parts = trained(
        deepcopy(tiny_bert),
        tmp_path / "parts",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
    )
    assert any(getattr(module, "gradient_checkpointing", False) for module in parts.model.modules())
    for (name, a), (_, b) in zip(plain.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4), name


@pytest.mark.slow
def test_a_plain_trainer_with_the_callback_ends_in_the_same_weights(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    # Logits of labelled positions only are the same numbers, but summed in another order.
    ours = trained(deepcopy(tiny_bert), tmp_path / "ours", full_logits=True)
    given = arguments(tmp_path / "plain", max_steps=16, lr_scheduler_type="linear", learning_rate=3e-3).to_dict()
    given = {field.name: given[field.name] for field in fields(TrainingArguments) if field.init}
    plain = Trainer(
        model=get_wid_model(deepcopy(tiny_bert), half()),
        args=TrainingArguments(**given),
        train_dataset=masked_rows(),
        callbacks=[WidCallback()],
        compute_loss_func=None,
    )
    plain.train()
    assert not plain.model.base_model.is_wide
    for (name, a), (_, b) in zip(ours.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_bare_loop_ends_in_the_same_weights(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    ours = trained(deepcopy(tiny_bert), tmp_path / "ours", lr_scheduler_type="constant", max_grad_norm=0.0)
    model = get_wid_model(deepcopy(tiny_bert), half()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.wid_begin(optimizer=optimizer)
    torch.manual_seed(42)
    loader = ours.get_train_dataloader()
    torch.manual_seed(42)
    step = 0
    while step < 16:
        for batch in loader:
            step += 1
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.wid_step(step)
            if step == 16:
                break
    assert model.merge_and_unload().config.hidden_size == ours.model.merge_and_unload().config.hidden_size
    assert {p.shape for p in model.parameters()} == {p.shape for p in ours.model.parameters()}


def test_merging_before_the_schedule_is_done_is_refused_with_steps_done_and_due(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = get_wid_model(tiny_bert, half())
    with pytest.raises(WidError, match=r"0 of an unknown number of steps.*force=True"):
        model.merge_and_unload()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.wid_begin(16, optimizer)
    for step in range(1, 6):
        model.wid_step(step)
    with pytest.raises(WidError, match=r"5 of 11 steps of the schedule are done.*Nothing was merged"):
        model.merge_and_unload()
    with pytest.warns(UserWarning, match=r"Merged by force: 5 of 11 .* have a norm of \d"):
        student = model.merge_and_unload(force=True)
    student.save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModelForMaskedLM.from_pretrained(tmp_path)), outputs(student))
    assert student.config.hidden_size == 12


def test_steps_may_be_left_out_but_not_go_back(tiny_bert: BertForMaskedLM) -> None:
    every, few = (get_wid_model(deepcopy(tiny_bert), half(BY_NORM)) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, 12):
            every.wid_step(step)
        for step in (2, 4, 6, 8, 11):
            few.wid_step(step)
    for (name, a), (_, b) in zip(every.named_parameters(), few.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7), name
    assert few.wid_step(11) is False
    with pytest.raises(WidError, match="Step 4 comes after step 11"):
        few.wid_step(4)


def test_the_least_rows_go_inside_every_head_by_itself(tiny_bert: BertForMaskedLM) -> None:
    model = get_wid_model(tiny_bert, half(BY_NORM))
    query = model.base_model.model.bert.encoder.layer[0].attention.self.query.parametrizations.weight[0].maps["0"]
    with torch.no_grad():
        query.matrix[[1, 3, 6, 8, 12, 16, 20, 22]] *= 3  # two of the six rows of each of four heads, with some
    kept = model.base_model.progress.final_index_sets(model.base_model.model)
    widths = [indices for leaf, indices in kept.items() if indices.ndim == 2]
    assert [index for index in widths[0][0].tolist() if index in (1, 3)] == [1, 3]
    assert {0, 2} <= set(widths[0][1].tolist())
    assert all(indices.shape == (4, 3) for indices in widths)


def test_importance_keeps_what_the_loss_needs(tiny_bert: BertForMaskedLM) -> None:
    """FFN units whose output weights are zero cost nothing; importance finds them, norms cannot."""
    dead = list(range(0, 48, 2))
    with torch.no_grad():
        for layer in tiny_bert.bert.encoder.layer:
            layer.output.dense.weight[:, dead] = 0
    schedule = WidSchedule(mask_interval=2, mask_increments=4, decay_to_zero_steps=3, selection="importance")
    rows = masked_rows().with_format("torch")[:]
    found: dict[str, list[int]] = {}
    for selection in ("importance", "norm"):
        model = get_wid_model(deepcopy(tiny_bert), half(WidSchedule(**{**vars(schedule), "selection": selection})))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model.wid_begin(16, optimizer)
        for step in range(1, 9):
            model(**rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.wid_step(step)
        progress = model.base_model.progress
        found[selection] = next(
            progress.index_sets()[leaf].tolist()
            for leaf, name in zip(progress.leaves, progress.names, strict=True)
            if "intermediate" in name
        )
    assert not set(found["importance"]) & set(dead)
    assert set(found["norm"]) & set(dead)


@pytest.mark.slow
def test_widths_are_logged_and_drawn(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    trainer = trained(tiny_bert, tmp_path, include_num_input_tokens_seen="all")
    logs = [entry for entry in trainer.state.log_history if "wid/wide" in entry]
    kept = [entry["wid/kept/bert.embeddings.word_embeddings.weight[1]"] for entry in logs]
    assert [kept[at - 1] for at in (1, 2, 4, 6, 8, 16)] == [24, 21, 18, 15, 12, 12]
    assert [entry["wid/wide"] for entry in logs[:12]] == [1.0] * 10 + [0.0] * 2
    assert [round(entry["wid/penalty"], 3) for entry in logs[:4]] == [0.0, 0.0, 0.333, 0.0]
    assert logs[-1]["wid/penalty"] == 1.0
    assert logs[0]["wid/dropped_norm"] == 0 < logs[5]["wid/dropped_norm"]
    assert logs[-1]["wid/dropped_norm"] == 0
    assert any(entry.get("wid/tokens_per_second", 0) > 0 for entry in logs)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 17))
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_choices_between_logged_steps_are_logged_as_well(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    trainer = trained(tiny_bert, tmp_path, logging_steps=16)
    steps = [entry["step"] for entry in trainer.state.log_history if "wid/wide" in entry]
    assert steps == [2, 4, 6, 8, 11, 16]


def test_a_schedule_longer_than_the_training_is_refused_before_the_first_step(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"ends at step 11 .* has only 5"):
        trained(tiny_bert, tmp_path, max_steps=5)


@pytest.mark.slow
def test_a_narrow_checkpoint_loads_into_a_model_that_is_still_wide_and_back(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    trainer = trained(deepcopy(tiny_bert), tmp_path, save_strategy="steps", save_steps=5)
    model = get_wid_model(deepcopy(tiny_bert), half())
    model.load_adapter(str(tmp_path / "checkpoint-15"), "default")
    assert not model.base_model.is_wide
    narrow = outputs(model)
    model.load_adapter(str(tmp_path / "checkpoint-5"), "default")
    assert model.base_model.is_wide
    assert not torch.allclose(outputs(model)[..., :3], narrow[..., :3])
    model.load_adapter(str(tmp_path / "checkpoint-15"), "default")
    assert torch.equal(outputs(model), narrow)
    assert trainer.state.global_step == 16


@pytest.mark.slow
def test_the_best_checkpoint_may_lie_before_the_shrink(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    trainer = WidTrainer(
        model=get_wid_model(tiny_bert, half()),
        args=arguments(
            tmp_path,
            max_steps=16,
            learning_rate=0.5,
            save_strategy="steps",
            save_steps=4,
            eval_strategy="steps",
            eval_steps=4,
            load_best_model_at_end=True,
            save_total_limit=2,
            logging_steps=4,
        ),
        train_dataset=masked_rows(),
        eval_dataset=masked_rows(8),
    )
    trainer.train()
    best = int(str(trainer.state.best_model_checkpoint).rsplit("-", 1)[1])
    assert trainer.model.base_model.is_wide == (best < 11)
    assert float(trainer.evaluate()["eval_loss"]) == pytest.approx(float(trainer.state.best_metric), rel=1e-5)


def test_a_loss_that_is_not_finite_right_after_the_shrink_stops_at_the_shrunk_weights(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
            if state.global_step == 11:
                rows[0] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                model.base_model.model.cls.predictions.bias.data.fill_(float("nan"))

    rows: list[Any] = [None]
    trainer = WidTrainer(
        model=get_wid_model(tiny_bert, half()),
        args=arguments(tmp_path, max_steps=16, logging_steps=16),
        train_dataset=masked_rows(),
        callbacks=[Poison()],
    )
    with pytest.raises(TrainingError, match=r"nan after 11 of 16 steps.*after step 11, whose loss was finite"):
        trainer.train()
    compactors = [name for name in rows[0] if name.endswith(".matrix")]
    assert compactors and all(torch.equal(trainer.model.state_dict()[n], rows[0][n]) for n in compactors)


def test_calibration_has_no_place_in_a_progressive_training(tiny_bert: BertForMaskedLM) -> None:
    model = get_wid_model(tiny_bert, half())
    with pytest.raises(ConfigError, match=r"no effect with a progressive schedule"):
        model.base_model.calibrate([IDS])


def test_a_narrow_schedule_takes_the_same_calls_and_does_nothing(tiny_bert: BertForMaskedLM) -> None:
    model = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity"))
    before = outputs(model)
    model.wid_begin(16)
    assert not model.wid_step(1)
    assert torch.equal(outputs(model), before)
    assert not any(isinstance(m, Compactor) and m.matrix.shape[0] > 24 for m in model.modules())


def test_a_controller_needs_neither_peft_nor_a_trainer(tiny_bert: BertForMaskedLM) -> None:
    planned = plan_student(tiny_bert, half(BY_NORM))
    parts = (tiny_bert, planned.config, planned.plan, planned.trace, BY_NORM, empty_student)
    controller = ProgressiveController(*parts)
    model = controller.model
    assert controller.is_wide and controller.index_sets == {}
    assert torch.allclose(outputs(model), outputs(tiny_bert), atol=1e-5)
    controller.begin(16, torch.optim.SGD(model.parameters(), lr=0.1), None)
    assert [step for step in range(1, 17) if controller.step(step)] == [11]
    assert controller.model is model and model.config.hidden_size == 12
    assert {leaf: indices.shape[-1] for leaf, indices in controller.index_sets.items()} == {
        leaf: planned.plan.targets[leaf] for leaf in controller.progress.leaves
    }
    other = ProgressiveController(*parts)
    untouched = deepcopy(other.progress.state_dict())
    assert other.match(controller.progress.state_dict()) and not other.is_wide
    assert other.model.config.hidden_size == 12
    assert not other.match(controller.progress.state_dict())
    assert other.match(untouched) and other.is_wide
    assert torch.allclose(outputs(other.model), outputs(tiny_bert), atol=1e-5)


def test_a_controller_cuts_off_what_is_left_only_by_force(tiny_bert: BertForMaskedLM) -> None:
    planned = plan_student(tiny_bert, half(BY_NORM))
    controller = ProgressiveController(tiny_bert, planned.config, planned.plan, planned.trace, BY_NORM, empty_student)
    with pytest.raises(WidError, match=r"0 of an unknown number of steps"):
        controller.finish()
    with pytest.warns(UserWarning, match="Merged by force"):
        controller.finish(force=True)
    assert not controller.is_wide and controller.model.config.hidden_size == 12
