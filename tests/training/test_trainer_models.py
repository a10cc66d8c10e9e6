"""`WidTrainer` where `Trainer` exchanges, casts or reloads its model, and where one model is trained several times."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_runs
from peft import PeftModel
from torch import nn
from toys import labelled_rows, noisy
from training_runs import HALF
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import HPSearchBackend

from wid_hf import (
    CalibrationConfig,
    FollowingTrainer,
    StudentTrainer,
    TrainingError,
    WidConfig,
    WidError,
    WidSchedule,
    WidSeq2SeqTrainingArguments,
    WidTrainer,
    get_wid_model,
)

SCHEDULE = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)  # narrow after step 4
PROGRESSIVE = WidConfig(hidden_size=12, intermediate_size=24, schedule=SCHEDULE)


def teacher(model_class: Any = BertForMaskedLM) -> Any:
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(config).eval()


def new() -> PeftModel:
    """A `model_init`."""
    return made()


def made(config: WidConfig = HALF) -> PeftModel:
    model = get_wid_model(teacher(), config)
    if config is HALF:
        noisy(model, 0.05)
    return model


arguments = partial(training_runs.arguments, max_steps=3)


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_arguments_go_by_position_as_in_trainer(tmp_path: Path) -> None:
    model, args, rows = made(), arguments(tmp_path), labelled_rows()

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in batch]) for name in ("input_ids", "labels")}

    for kind, student in ((WidTrainer, model), (StudentTrainer, teacher())):
        trainer = kind(student, args, collate, rows, rows)
        assert (trainer.data_collator, trainer.train_dataset, trainer.eval_dataset) == (collate, rows, rows)
    following = FollowingTrainer(
        get_wid_model(teacher(BertModel), HALF), arguments(tmp_path, teacher_learning_rate=0), collate, rows
    )
    assert following.data_collator is collate


# model_init


@pytest.mark.slow
def test_every_training_starts_from_a_new_model(tmp_path: Path) -> None:
    given = {"train_dataset": labelled_rows(), "model_init": new}
    stock, wid = (kind(args=arguments(tmp_path, TrainingArguments), **given) for kind in (Trainer, WidTrainer))
    for trainer in (stock, wid):
        for _ in range(2):
            trainer.train()
    assert wid.train().training_loss == pytest.approx(stock.train().training_loss, rel=1e-4)
    assert losses(wid) == pytest.approx(losses(stock), rel=1e-4)


@pytest.mark.slow
def test_what_hangs_on_the_model_follows_it(tmp_path: Path) -> None:
    models: list[PeftModel] = []

    def init() -> PeftModel:
        models.append(made())
        return models[-1]

    args = arguments(tmp_path, teacher_learning_rate=0, distillation=["logits", "hidden", "relations"])
    trainer = WidTrainer(args=args, train_dataset=labelled_rows(), model_init=init)
    found = []
    for _ in range(2):
        trainer.train()
        found.append(losses(trainer))
        latest = models[-1]
        assert trainer.model is latest and trainer._distillation is not None
        assert trainer._distillation._wid is latest.base_model
        originals = values(latest.base_model.teacher)
        assert all(torch.equal(originals[name], p) for name, p in teacher().named_parameters())
        held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
        assert held and not held & set(latest.base_model.teacher.parameters())
    assert len(models) == 3 and found[0] == found[1]
    by_hand = WidTrainer(made(), args, train_dataset=labelled_rows())
    by_hand.train()
    assert losses(by_hand) == found[0]


def test_a_new_model_is_calibrated(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=16))
    trainer = WidTrainer(
        args=arguments(tmp_path), train_dataset=labelled_rows(), model_init=lambda: get_wid_model(teacher(), config)
    )
    trainer.train()
    assert trainer.model.base_model.calibrated and trainer.model.merge_and_unload()


def test_a_model_init_that_makes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WidError, match=r"not a BertForMaskedLM\. Call get_wid_model"):
        WidTrainer(args=arguments(tmp_path), model_init=lambda trial: teacher())


@pytest.mark.slow
def test_the_trainers_of_stock_students_and_followers_take_new_models(tmp_path: Path) -> None:
    def follower() -> PeftModel:
        return get_wid_model(teacher(BertModel), HALF)

    def student() -> Any:
        return teacher()

    frozen, args, rows = arguments(tmp_path, teacher_learning_rate=0), arguments(tmp_path), labelled_rows()
    for trainer in (
        FollowingTrainer(args=frozen, train_dataset=rows.remove_columns("labels"), model_init=follower),
        StudentTrainer(args=args, train_dataset=rows, model_init=student),
    ):
        found = []
        for _ in range(2):
            trainer.train()
            found.append(losses(trainer))
        assert found[0] == found[1] and len(set(found[0])) == 3, type(trainer)


# Hyperparameter search.


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are made by hand, so that no package for them needs be installed."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)


@pytest.mark.usefixtures("no_backend")
def test_a_trial_sets_rates_and_temperature(tmp_path: Path) -> None:
    trainer = WidTrainer(
        args=arguments(tmp_path, distillation=["logits"], teacher_learning_rate=0, compactor_learning_rate=1e-3),
        train_dataset=labelled_rows(),
        model_init=new,
    )
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: trial.params
    asked = (
        {"compactor_learning_rate": 0.5, "distillation_temperature": 7.0, "per_device_train_batch_size": 2},
        {"compactor_learning_rate": 1e-3, "distillation_temperature": 1.0, "per_device_train_batch_size": 8},
    )
    for params in asked:
        trainer.train(trial=SimpleNamespace(number=0, params=params))
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {params["compactor_learning_rate"]}
        assert trainer._distillation is not None
        assert trainer._distillation.temperature == params["distillation_temperature"]
        assert trainer.state.train_batch_size == params["per_device_train_batch_size"]


@pytest.mark.usefixtures("no_backend")
def test_a_trial_freezes_and_unfreezes_the_teacher(tmp_path: Path) -> None:
    trainer = WidTrainer(
        args=arguments(tmp_path, teacher_learning_rate=1e-3), train_dataset=labelled_rows(), model_init=new
    )
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: trial.params
    for rate in (0.0, 1e-2):
        trainer.train(trial=SimpleNamespace(number=0, params={"teacher_learning_rate": rate}))
        trained, fresh = trainer.model.base_model.teacher, teacher()
        moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)]
        assert any(moved) == (rate > 0)


def test_hyperparameter_search_with_optuna(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    trainer = WidTrainer(
        args=arguments(tmp_path, eval_strategy="epoch"),
        train_dataset=labelled_rows(),
        eval_dataset=labelled_rows(),
        model_init=new,
    )
    best = trainer.hyperparameter_search(
        lambda trial: {"compactor_learning_rate": trial.suggest_float("compactor_learning_rate", 1e-4, 1e-1, log=True)},
        n_trials=3,
        backend="optuna",
    )
    assert best.objective < 5 and 1e-4 <= best.hyperparameters["compactor_learning_rate"] <= 1e-1


# Evaluation in half precision.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
@pytest.mark.parametrize("config", ["identity", "calibrated", "progressive"])
def test_a_full_evaluation_in_half_is_that_of_the_merged_student(name: str, config: str, tmp_path: Path) -> None:
    configs = {
        "identity": HALF,
        "calibrated": WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=16)),
        "progressive": PROGRESSIVE,
    }
    rows = labelled_rows()
    model = made(configs[config])
    trainer = WidTrainer(model, arguments(tmp_path, max_steps=5, **{name: True}), train_dataset=rows, eval_dataset=rows)
    trainer.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {id(p): (p.dtype, p.requires_grad) for p in model.parameters()}
    student = model.merge_and_unload()
    stock = Trainer(student, arguments(tmp_path, TrainingArguments, **{name: True}), eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-2)
    predicted, wanted = (each.predict(rows).predictions for each in (trainer, stock))
    assert predicted.dtype == wanted.dtype and (predicted == wanted).mean() > 0.9
    assert student.dtype == {"bf16_full_eval": torch.bfloat16, "fp16_full_eval": torch.float16}[name]
    # The model itself has lost nothing, and trains on.
    assert modes == {id(p): (p.dtype, p.requires_grad) for p in model.parameters()}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    trainer.train()


@pytest.mark.slow
def test_an_evaluation_while_training_is_in_full(tmp_path: Path) -> None:
    rows, found = labelled_rows(), []
    for given in ({}, {"bf16_full_eval": True}):
        args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, **given)
        trainer = WidTrainer(made(), args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        found.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert len(found[0]) == 3 and found[0] == found[1]


def test_a_follower_is_evaluated_in_half(tmp_path: Path) -> None:
    rows = labelled_rows().remove_columns("labels")
    model = get_wid_model(teacher(BertModel), HALF)
    found = []
    for half in (False, True):
        args = arguments(
            tmp_path, teacher_learning_rate=0, bf16_full_eval=half, label_names=[], prediction_loss_only=True
        )
        trainer = FollowingTrainer(model, args, train_dataset=rows, eval_dataset=rows)
        trainer.can_return_loss = True  # it has a loss without labels
        found.append(trainer.evaluate()["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=0.02) and found[0] != found[1]


# One model, several trainings.


def test_a_second_training_goes_on(tmp_path: Path) -> None:
    trainer = WidTrainer(made(), arguments(tmp_path), train_dataset=labelled_rows())
    trainer.train()
    first = losses(trainer)
    trainer.train()
    assert trainer.state.global_step == 3 and losses(trainer)[-1] < first[0]


@pytest.mark.slow
def test_a_second_training_that_breaks_does_not_lose_the_first(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            if armed:
                next(p for n, p in model.named_parameters() if n.endswith(".matrix")).data.fill_(float("nan"))

    armed: list[int] = []
    trainer = WidTrainer(made(), arguments(tmp_path), train_dataset=labelled_rows(), callbacks=[Poison()])
    trainer.train()
    trained = values(trainer.model)
    args = arguments(tmp_path, logging_steps=2)
    second = WidTrainer(trainer.model, args, train_dataset=labelled_rows())
    second.train()
    good = values(second.model)
    second.add_callback(Poison())
    armed.append(1)
    with pytest.raises(TrainingError, match="after 0 of 3 steps"):
        second.train()
    after = values(second.model)
    broken = [name for name in good if not torch.equal(good[name], after[name])]
    assert len(broken) == 1 and after[broken[0]].isnan().all()  # what broke it was no step of the training
    assert any(not torch.equal(trained[name], after[name]) for name in trained)


@pytest.mark.slow
def test_a_finished_progressive_model_trains_on(tmp_path: Path) -> None:
    model = made(PROGRESSIVE)
    WidTrainer(model, arguments(tmp_path / "a", max_steps=6), train_dataset=labelled_rows()).train()
    assert not model.base_model.is_wide
    shape = [p.shape for p in model.parameters()]
    before = values(model)
    second = WidTrainer(model, arguments(tmp_path / "b", max_steps=2), train_dataset=labelled_rows())
    second.train()
    assert [p.shape for p in model.parameters()] == shape
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters() if name.endswith(".matrix"))
    assert (tmp_path / "a" / "widths.png").exists() and not (tmp_path / "b" / "widths.png").exists()
    model.merge_and_unload()


@pytest.mark.slow
def test_a_schedule_that_was_stopped_goes_on_in_a_new_training(tmp_path: Path) -> None:
    model = made(PROGRESSIVE)
    WidTrainer(model, arguments(tmp_path, max_steps=5), train_dataset=labelled_rows(), callbacks=[Stop(2)]).train()
    assert model.base_model.is_wide and int(model.base_model.progress.steps) == 2
    trainer = WidTrainer(model, arguments(tmp_path, max_steps=4), train_dataset=labelled_rows(), callbacks=[Stop(1)])
    trainer.train()
    assert model.base_model.is_wide and int(model.base_model.progress.steps) == 3
    WidTrainer(model, arguments(tmp_path, max_steps=4), train_dataset=labelled_rows(), callbacks=[Stop(1)]).train()
    assert not model.base_model.is_wide  # after 4 steps in all
    model.merge_and_unload()


@pytest.mark.slow
def test_a_batch_that_is_too_large_is_halved_in_the_middle_of_a_schedule(tmp_path: Path) -> None:
    class TooLarge(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.train_batch_size > 2 and state.global_step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    model = made(PROGRESSIVE)
    args = arguments(tmp_path, max_steps=5, auto_find_batch_size=True)
    trainer = WidTrainer(model, args, train_dataset=labelled_rows(), callbacks=[TooLarge()])
    trainer.train()
    assert trainer.state.train_batch_size == 2 and trainer.state.global_step == 5
    assert not model.base_model.is_wide


class Stop(TrainerCallback):
    """Stops a training after some of its steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.after


# The best model.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "student"])
@pytest.mark.parametrize("config", [HALF, PROGRESSIVE], ids=["narrow", "progressive"])
def test_the_best_model_is_loaded_whatever_the_adapter_is_called(name: str, config: WidConfig, tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        """Every step makes the model worse, so that the first is the best."""

        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            noisy(model, 0.5 * state.global_step)

    model = get_wid_model(teacher(), config, adapter_name=name)
    args = arguments(
        tmp_path,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    rows = labelled_rows()
    trainer = WidTrainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[Spoil()])
    trainer.train()
    scores = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(scores, key=lambda step: scores[step])
    assert best < 6 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-5)
    trainer.train()  # it is still trainable


# Sequence to sequence.


TOKENS = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=60,
        d_model=24,
        d_kv=6,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("kind", [Seq2SeqTrainingArguments, WidSeq2SeqTrainingArguments])
def test_predictions_are_generated_as_seq2seq_trainer_does(kind: Any, tmp_path: Path) -> None:
    model = get_wid_model(t5(), WidConfig(hidden_size=12, init="identity"))
    noisy(model)
    seen: list[Any] = []
    given = {
        "predict_with_generate": True,
        "generation_config": GenerationConfig(**TOKENS, max_new_tokens=5, num_beams=2),
    }
    rows = labelled_rows()
    trainer = WidTrainer(
        model,
        arguments(tmp_path, kind, **given),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda prediction: seen.append(prediction) or {"rows": len(prediction.predictions)},
    )
    trainer.train()
    metrics = trainer.evaluate()
    student = model.merge_and_unload()
    stock = Seq2SeqTrainer(student, arguments(tmp_path, Seq2SeqTrainingArguments, **given))
    wanted = stock.predict(rows)
    assert metrics["eval_rows"] == 16 and (seen[-1].predictions == wanted.predictions).all()
    assert metrics["eval_loss"] == pytest.approx(wanted.metrics["test_loss"], rel=1e-4)
    found = trainer.predict(rows, num_beams=1, max_new_tokens=3).predictions
    assert found.shape == stock.predict(rows, num_beams=1, max_new_tokens=3).predictions.shape


def test_a_new_model_generates_by_the_arguments_too(tmp_path: Path) -> None:
    args = arguments(
        tmp_path,
        WidSeq2SeqTrainingArguments,
        predict_with_generate=True,
        generation_config=GenerationConfig(**TOKENS, max_new_tokens=5),
    )
    trainer = WidTrainer(
        args=args,
        train_dataset=labelled_rows(),
        model_init=lambda: get_wid_model(t5(), WidConfig(hidden_size=12, init="identity")),
    )
    trainer.train()
    assert trainer.student.generation_config.max_new_tokens == 5
    assert (trainer.predict(labelled_rows()).predictions[:, 6:] == 0).all()  # padded to the default length


def test_a_rate_for_each_kind_of_weight_goes_with_generation(tmp_path: Path) -> None:
    args = arguments(tmp_path, WidSeq2SeqTrainingArguments, teacher_learning_rate=0, predict_with_generate=True)
    model = get_wid_model(t5(), WidConfig(hidden_size=12, init="identity"))
    before = deepcopy(model.base_model.teacher.state_dict())
    WidTrainer(model, args, train_dataset=labelled_rows()).train()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.base_model.teacher.state_dict().items())
