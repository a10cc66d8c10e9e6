"""Distillation in training: accumulation, what stays untouched, models that skip layers, what is refused."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs
from distilled_models import HEADS, bert, distilled, gpt2, llama, moved, opt, seeded
from torch import Tensor
from toys import hooks, labelled_batch, labelled_rows, wav2vec2_config
from training_runs import HALF
from transformers import (
    BertModel,
    HfArgumentParser,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2ForCTC,
)

from wid_hf import (
    CalibrationConfig,
    FollowingTrainer,
    TeacherError,
    TrainingError,
    WidConfig,
    WidError,
    WidSchedule,
    WidTrainer,
    WidTrainingArguments,
    get_wid_model,
)
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.losses.logits import logits_loss
from wid_hf.training.losses.registry import DISTILLED


def test_padding_does_not_count() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    before = distilled(model, list(DISTILLED), inputs)
    inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 7)
    assert distilled(model, list(DISTILLED), inputs).item() == pytest.approx(before.item(), rel=1e-5)


arguments = partial(
    training_runs.arguments,
    max_steps=2,
    per_device_train_batch_size=16,
    teacher_learning_rate=0,
    distillation=list(DISTILLED),
)


def trained(teacher: PreTrainedModel, config: WidConfig, args: WidTrainingArguments) -> WidTrainer:
    trainer = WidTrainer(model=get_wid_model(teacher, config), args=args, train_dataset=labelled_rows())
    trainer.train()
    return trainer


FAMILIES = [(bert, HALF), (gpt2, WidConfig(hidden_size=12, init="identity")), (llama, HEADS)]


@pytest.mark.parametrize(
    ("make", "config"),
    [
        pytest.param(*family, id=name, marks=() if name == "bert" else pytest.mark.slow)
        for family, name in zip(FAMILIES, ("bert", "gpt2", "llama"), strict=True)
    ],
)
@pytest.mark.parametrize("loss", DISTILLED)
def test_accumulated_micro_batches_have_the_gradients_of_one_batch(
    make: Any, config: WidConfig, loss: str, tmp_path: Path
) -> None:
    ended = []
    for accumulation in (1, 4, 8):
        args = arguments(
            tmp_path,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            distillation=[loss],
            learning_rate=1.0,
            max_steps=1,
        )
        trainer = trained(make().double(), config, args)
        ended.append(({n: p for n, p in trainer.model.named_parameters()}, trainer.state.log_history[0]["loss"]))
    (whole, loss_whole), *others = ended
    start = dict(get_wid_model(make().double(), config).named_parameters())
    for parts, loss_parts in others:
        assert loss_parts == pytest.approx(loss_whole, rel=1e-6)
        for name, parameter in whole.items():
            assert torch.allclose(parameter, parts[name], atol=1e-6, rtol=0), name
    assert (
        max(float((whole[name] - start[name]).detach().abs().max()) for name in whole) > 1e-2
    )  # that is far above 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("loss", DISTILLED)
def test_each_loss_goes_down_where_it_is_all_that_trains(loss: str, tmp_path: Path) -> None:
    teacher = bert()
    before = deepcopy(teacher.state_dict())
    model, inputs = get_wid_model(teacher, HALF), labelled_batch(16)
    args = arguments(tmp_path, max_steps=30, distillation=[loss], distillation_weight=1e3, learning_rate=5e-3)
    start = distilled(model, [loss], inputs).item()
    WidTrainer(model=model, args=args, train_dataset=labelled_rows()).train()
    assert distilled(model, [loss], inputs).item() < 0.8 * start
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.slow
def test_the_weight_scales_what_is_added(tmp_path: Path) -> None:
    plain, once, twice = (
        trained(bert(), HALF, arguments(tmp_path, max_steps=1, **given)).state.log_history[0]["loss"]
        for given in ({"distillation": []}, {}, {"distillation_weight": 2.0})
    )
    assert once > plain
    assert twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)


@pytest.mark.slow
def test_label_smoothing_takes_the_labels_away_only_from_the_models_own_loss(tmp_path: Path) -> None:
    smooth = {"label_smoothing_factor": 0.1, "max_steps": 1, "distillation": ["logits"]}
    off, on = (
        trained(bert(), HALF, arguments(tmp_path, **{**smooth, **given})).state.log_history[0]["loss"]
        for given in ({"distillation": []}, {})
    )
    model = get_wid_model(bert(), HALF)
    inputs = {name: torch.tensor(values) for name, values in labelled_rows().to_dict().items()}
    assert on - off == pytest.approx(distilled(model, ["logits"], inputs).item(), rel=1e-4)


def test_evaluation_reports_the_models_own_loss(tmp_path: Path) -> None:
    scores = [
        WidTrainer(
            get_wid_model(bert(), HALF), arguments(tmp_path, distillation=wanted), eval_dataset=labelled_rows()
        ).evaluate()
        for wanted in ([], list(DISTILLED))
    ]
    assert scores[0]["eval_loss"] == pytest.approx(scores[1]["eval_loss"], rel=1e-6)


def test_the_teacher_runs_once_a_micro_batch_in_evaluation_mode_without_gradients(tmp_path: Path) -> None:
    teacher, modes = bert(hidden_dropout_prob=0.5), []
    trainer = WidTrainer(
        model=get_wid_model(teacher.train(), HALF),
        args=arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3),
        train_dataset=labelled_rows(),
    )
    teacher.train()
    teacher.bert.register_forward_hook(
        lambda module, args, output: modes.append((module.training, output.last_hidden_state.requires_grad))
    )
    trainer.train()
    assert modes == [(False, False)] * 6


def test_no_hook_and_no_second_copy_remain(tmp_path: Path) -> None:
    teacher = bert()
    teacher(**labelled_batch(), output_hidden_states=True)  # transformers puts hooks of its own, once
    model = get_wid_model(teacher, HALF)
    before = hooks(model), hooks(teacher)
    trainer = WidTrainer(model=model, args=arguments(tmp_path), train_dataset=labelled_rows())
    trainer.train()
    assert (hooks(model), hooks(teacher)) == before
    with pytest.raises(ValueError, match="You must specify exactly one of input_ids"):
        trainer.compute_loss(model.train(), {"labels": torch.zeros(2, 3, dtype=torch.long)})
    assert (hooks(model), hooks(teacher)) == before
    originals = {id(p) for name, p in model.named_parameters() if name.endswith(".original")}
    assert originals <= {id(p) for p in teacher.parameters()}


def checkpointed(folder: Path, reentrant: bool | None) -> WidTrainer:
    model = get_wid_model(bert(), HALF)
    if reentrant is not None:
        student = model.base_model.model
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
    args = arguments(folder, max_steps=1, optim="sgd", max_grad_norm=0.0, learning_rate=1.0)
    trainer = WidTrainer(model=model, args=args, train_dataset=labelled_rows())
    trainer.train()
    return trainer


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, saved = (checkpointed(tmp_path, reentrant) for reentrant in (None, False))
    for (name, a), (_, b) in zip(plain.model.named_parameters(), saved.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_checkpointing_that_loses_the_gradients_of_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='"use_reentrant": False'):
        checkpointed(tmp_path, True)


def test_a_calibrated_start_is_made_before_anything_is_distilled(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(samples=16))
    trainer = trained(bert(), config, arguments(tmp_path))
    assert trainer.model.base_model.calibrated
    assert trainer.state.log_history[-1]["train_loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("make", "strategy"), [(bert, "dim"), (bert, "head"), (gpt2, "dim")])
def test_a_progressive_student_is_distilled_while_wide_and_after_it_shrank(
    make: Any, strategy: str, tmp_path: Path
) -> None:
    schedule = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)
    model = get_wid_model(make(), WidConfig(hidden_size=12, head_strategy=strategy, schedule=schedule))
    inputs = labelled_batch()
    for loss in DISTILLED:  # as long as nothing is dropped the student is the teacher
        assert distilled(model, [loss], inputs).item() == pytest.approx(0, abs=1e-6), loss
    trainer = WidTrainer(model=model, args=arguments(tmp_path, max_steps=8), train_dataset=labelled_rows())
    trainer.train()
    assert not model.base_model.is_wide
    wanted, narrow = model.base_model.teacher(**inputs).logits, model(**inputs).logits
    counted = inputs["labels"] != -100
    if make is gpt2:
        counted = torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], 1)
    expected = logits_loss(narrow[counted], wanted[counted], 2.0).mean().item()
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(expected, rel=1e-4)
    model.zero_grad()
    with trainer._distillation.watching() as student:
        student.output = model(**inputs)
    trainer._distillation.loss(student, trainer._distillation.target(inputs), inputs).backward()
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith(".matrix")]
    assert len(gradients) > 8 and all(grad is not None and grad.abs().max() > 0 for grad in gradients)


def wav2vec2(layerdrop: float) -> Wav2Vec2ForCTC:
    return seeded(Wav2Vec2ForCTC, wav2vec2_config(num_hidden_layers=3, layerdrop=layerdrop))


@pytest.mark.parametrize(
    ("make", "losses"), [(wav2vec2, ["hidden", "relations"]), (opt, ["logits", "hidden", "relations"])]
)
def test_a_student_that_skips_layers_is_compared_where_it_ran(make: Any, losses: list[str], tmp_path: Path) -> None:
    """All that is skipped in every step: what is left are the states outside of layers, and no relations."""
    never, always = (
        moved(get_wid_model(make(rate), WidConfig(hidden_size=12, init="identity"))) for rate in (0.0, 1.0)
    )
    inputs: dict[str, Tensor] = labelled_batch()
    if make is wav2vec2:
        inputs = {"input_values": torch.randn(4, 800, generator=torch.Generator().manual_seed(0))}
    whole = distilled(never.train(), losses, inputs)
    assert distilled(always.eval(), losses, inputs).item() == pytest.approx(whole.item(), rel=1e-5)
    assert 0 < distilled(always.train(), ["hidden"], inputs).item() != pytest.approx(whole.item(), rel=1e-3)
    assert distilled(always.train(), ["relations"], inputs).item() == 0


def test_a_training_with_layerdrop_goes_through(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=8, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = trained(opt(0.5), WidConfig(hidden_size=12, init="identity"), args)
    assert trainer.state.global_step == 8


def test_a_forward_that_cannot_be_watched_is_refused() -> None:
    model, inputs = get_wid_model(bert(), HALF), labelled_batch()
    distillation = Distillation(model, ["hidden"])
    with distillation.watching() as student:
        student.output = model.base_model.model.forward(**inputs)  # past the hooks, as a compiled one runs
    with pytest.raises(TrainingError, match=r'compiled or skips hooks.*\["logits"\]'):
        distillation.loss(student, distillation.target(inputs), inputs)


def test_label_smoothing_and_distillation_add_up(tmp_path: Path) -> None:
    inputs = labelled_batch()
    model = moved(get_wid_model(bert(), HALF))
    found = {}
    for smoothing in (0.0, 0.2):
        for losses in ([], list(DISTILLED)):
            args = arguments(tmp_path, label_smoothing_factor=smoothing, distillation=losses, distillation_weight=0.5)
            trainer = WidTrainer(model=model, args=args, train_dataset=labelled_rows())
            found[smoothing, bool(losses)] = trainer.compute_loss(model.train(), dict(inputs)).item()
    term = 0.5 * distilled(model, list(DISTILLED), inputs).item()
    for smoothing in (0.0, 0.2):
        assert found[smoothing, True] == pytest.approx(found[smoothing, False] + term, rel=1e-5)
    assert found[0.2, False] != pytest.approx(found[0.0, False], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [4, 8])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_label_smoothing_and_distillation_accumulate(make: Any, accumulation: int, tmp_path: Path) -> None:
    ended = []
    for pieces in (1, accumulation):
        args = arguments(
            tmp_path,
            max_steps=1,
            label_smoothing_factor=0.2,
            per_device_train_batch_size=16 // pieces,
            gradient_accumulation_steps=pieces,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=1.0,
        )
        trainer = trained(make(), WidConfig(hidden_size=12, init="identity"), args)
        ended.append(trainer)
    whole, parts = ended
    assert parts.state.log_history[0]["loss"] == pytest.approx(whole.state.log_history[0]["loss"], rel=1e-4)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"distillation": ["logit"]},
            r"\['logit'\] is unknown; legal are \"logits\" \(.*; \"hidden\" \(.*; \"relations\" \(",
        ),
        ({"teacher_learning_rate": None}, r"set teacher_learning_rate=0 \(it is None\)"),
        ({"teacher_learning_rate": 1e-5}, r"must not change.*\(it is 1e-05\)"),
        ({"distillation_weight": 0.0}, "distillation_weight=0.0 must be above 0"),
        ({"distillation_temperature": float("nan")}, "distillation_temperature=nan must be above 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **given)


def test_the_command_line_takes_several_losses(tmp_path: Path) -> None:
    parser = HfArgumentParser(WidTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--teacher_learning_rate", "0"]
    (args,) = parser.parse_args_into_dataclasses([*words, "--distillation", "logits", "hidden"])
    assert args.distillation == ["logits", "hidden"]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.distillation == []


def test_an_encoder_with_a_decoder_distils_its_logits_only() -> None:
    config = T5Config(vocab_size=60, d_model=24, d_kv=6, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = moved(get_wid_model(seeded(T5ForConditionalGeneration, config), WidConfig(hidden_size=12, init="identity")))
    inputs = labelled_batch()
    chosen = inputs["labels"] != -100
    wanted, got = (m(**inputs).logits[chosen] for m in (model.base_model.teacher.eval(), model.eval()))
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )
    with pytest.raises(TeacherError, match=r"T5ForConditionalGeneration is an encoder-decoder model.*remove"):
        Distillation(model, ["logits", "hidden"])


def test_a_follower_compares_no_logits(tmp_path: Path) -> None:
    args = arguments(tmp_path, distillation=["logits"], teacher_learning_rate=0)
    with pytest.raises(WidError, match=r"FollowingTrainer compares outputs already. Leave \"logits\" out"):
        FollowingTrainer(get_wid_model(bert(BertModel), HALF), args)
