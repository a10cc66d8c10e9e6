"""Reports of trainers: resuming, accumulation, checkpointing, options that a drop-in `Trainer` did not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from case import case
from datasets import Dataset
from peft import PeftModel
from small import arguments, bert, gradient_norms, half_bert, losses, rows, same_outputs
from transformers import TrainerCallback, TrainerControl, TrainerState

from wid_hf import CalibrationConfig, WidConfig, WidSchedule, WidTrainer, get_wid_model

KIND = "Trainers"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # so that two runs can be compared
SHORT = {"mask_interval": 1, "mask_increments": 2, "decay_to_zero_steps": 2}  # narrow after step 4


def _unequal_rows(count: int = 16, length: int = 10) -> Dataset:
    """Return rows of which each has another number of labels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (count, length), generator=generator)
    labels = torch.where(torch.arange(length) < torch.randint(1, length, (count, 1), generator=generator), ids, -100)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def _one_step(folder: Path, pieces: int, **more: Any) -> tuple[float, float]:
    """Train one step of eight rows in some micro-batches; return loss and norm of the gradient."""
    trainer = WidTrainer(
        model=half_bert(bert(**STILL)),
        train_dataset=_unequal_rows(),
        args=arguments(
            folder,
            max_steps=1,
            per_device_train_batch_size=8 // pieces,
            gradient_accumulation_steps=pieces,
            logging_steps=1,
            **more,
        ),
    )
    trainer.train()
    return losses(trainer)[0], gradient_norms(trainer)[0]


def _near(one: float, other: float, share: float = 1e-4) -> None:
    assert abs(one - other) <= share * abs(one), (one, other)


@case(
    KIND,
    "trl#6006, trl#6452, trl#6478, transformers#36331",
    "Rows with unequal numbers of labels in 1, 4 and 8 micro-batches: one loss, one gradient",
)
def accumulation(folder: Path) -> None:
    whole = _one_step(folder, 1)
    for pieces in (4, 8):
        for one, other in zip(whole, _one_step(folder, pieces), strict=True):
            _near(one, other)


@case(KIND, "trl#6452, transformers#36331", "The same with distillation of logits and hidden states beside the loss")
def accumulation_with_distillation(folder: Path) -> None:
    more = {"teacher_learning_rate": 0, "distillation": ["logits", "hidden"]}
    for one, other in zip(_one_step(folder, 1, **more), _one_step(folder, 4, **more), strict=True):
        _near(one, other)


@case(
    KIND, "trl#6478, transformers#36331", 'A loss that is a sum (CTC with `reduction="sum"`) in 1 and 4 micro-batches'
)
def accumulation_of_a_sum(folder: Path) -> None:
    config = transformers.Wav2Vec2Config(
        vocab_size=20,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        mask_time_prob=0.0,
        apply_spec_augment=False,
        pad_token_id=0,
        ctc_loss_reduction="sum",
    )
    generator = torch.Generator().manual_seed(4)
    sounds = torch.randn(8, 800, generator=generator)
    texts = torch.randint(1, 20, (8, 4), generator=generator)
    data = Dataset.from_dict({"input_values": sounds.tolist(), "labels": texts.tolist()})

    def collate(some: list[dict[str, list[float]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in some]) for name in some[0]}

    found = []
    for pieces in (1, 4):
        torch.manual_seed(0)
        teacher = transformers.Wav2Vec2ForCTC(config)
        settings = arguments(
            folder,
            max_steps=1,
            per_device_train_batch_size=8 // pieces,
            gradient_accumulation_steps=pieces,
            logging_steps=1,
            remove_unused_columns=False,
        )
        model = get_wid_model(teacher, WidConfig(hidden_size=12, init="identity"))
        trainer = WidTrainer(model=model, args=settings, train_dataset=data, data_collator=collate)
        trainer.train()
        found.append(gradient_norms(trainer)[0])
    _near(*found, share=1e-3)


@case(
    KIND,
    "peft#742, peft#899, transformers#26334, transformers#42489",
    "Gradient checkpointing asked of the trainer: the same loss and gradient as without",
)
def checkpointing_in_the_trainer(folder: Path) -> None:
    plain, saving = _one_step(folder, 1), _one_step(folder, 1, gradient_checkpointing=True)
    for one, other in zip(plain, saving, strict=True):
        _near(one, other)


@case(KIND, "peft#1453, CoFiPruning#46", "Gradient checkpointing switched on in the teacher is on in the student")
def checkpointing_in_the_teacher(folder: Path) -> None:
    teacher = bert()
    teacher.gradient_checkpointing_enable()
    model = half_bert(teacher)
    assert model.base_model.model.is_gradient_checkpointing
    WidTrainer(model=model, args=arguments(folder), train_dataset=rows()).train()


@case(KIND, "trl#484", "`model_init` in the place of a model: made anew in each training, calibrated, trained")
def model_init(folder: Path) -> None:
    made = []

    def make() -> PeftModel:
        made.append(get_wid_model(bert(), WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=32))))
        return made[-1]

    trainer = WidTrainer(args=arguments(folder), train_dataset=rows(), model_init=make)
    trainer.train()
    assert trainer.model is made[-1]
    assert bool(made[-1].base_model.calibrated)
    assert trainer.model.merge_and_unload().config.hidden_size == 12


@case(KIND, "peft#914", "Trials of a search in one trainer: each makes a model anew and trains it at its own size")
def trials(folder: Path) -> None:
    trial: dict[str, Any] = {}

    def make() -> PeftModel:
        size = trial.get("hidden_size", 8)
        return get_wid_model(bert(), WidConfig(hidden_size=size, calibration_config=CalibrationConfig(samples=32)))

    trainer = WidTrainer(args=arguments(folder), train_dataset=rows(), eval_dataset=rows(), model_init=make)
    found = []
    for size, rate in ((8, 1e-3), (16, 1e-3), (8, 1e-3)):
        trial["hidden_size"], trainer.args.learning_rate = size, rate
        trainer.train()
        student = trainer.model.merge_and_unload()
        assert student.config.hidden_size == size
        found.append(trainer.evaluate()["eval_loss"])
        _near(found[-1], _loss_of(student))
    assert found[0] == found[2] != found[1], found


@case(
    KIND, "transformers#10268", "`bf16_full_eval`: the loss of the merged student, and float32 weights go on training"
)
def evaluation_in_half(folder: Path) -> None:
    model = half_bert()
    expected = _loss_of(model)
    trainer = WidTrainer(
        model=model,
        train_dataset=rows(),
        eval_dataset=rows(),
        args=arguments(folder, bf16_full_eval=True, max_steps=4, eval_strategy="steps", eval_steps=2),
    )
    _near(expected, WidTrainer(model=half_bert(), args=trainer.args, eval_dataset=rows()).evaluate()["eval_loss"], 0.02)
    trainer.train()
    seen = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(seen) == 2
    _near(_loss_of(model), seen[-1], 0.02)


def _loss_of(model: Any) -> float:
    batch = {name: torch.tensor(rows()[name][:]) for name in ("input_ids", "labels")}
    with torch.no_grad():
        return model.float().eval()(**batch).loss.item()


@case(KIND, "trl#3132, peft#184", "`train()` twice: the second goes on from the first, and the student merges exactly")
def training_twice(folder: Path) -> None:
    model = half_bert()
    trainer = WidTrainer(
        model=model, train_dataset=rows(), eval_dataset=rows(), args=arguments(folder, max_steps=20, learning_rate=3e-3)
    )
    scores = [trainer.evaluate()["eval_loss"]]
    for _ in range(2):
        trainer.train()
        scores.append(trainer.evaluate()["eval_loss"])
    assert scores[0] > scores[1] > scores[2], scores
    same_outputs(model, model.merge_and_unload())


@case(KIND, "peft#184", "A new trainer goes on with a model whose progressive training is done")
def training_after_a_schedule(folder: Path) -> None:
    model = get_wid_model(bert(), WidConfig(hidden_size=12, schedule=WidSchedule(**SHORT)))
    WidTrainer(model=model, args=arguments(folder, max_steps=6), train_dataset=rows()).train()
    done = model.merge_and_unload()
    assert done.config.hidden_size == 12
    again = WidTrainer(
        model=model, train_dataset=rows(), eval_dataset=rows(), args=arguments(folder, max_steps=20, learning_rate=3e-3)
    )
    before = again.evaluate()["eval_loss"]
    again.train()
    assert again.evaluate()["eval_loss"] < before
    same_outputs(model, model.merge_and_unload())


@case(KIND, "trl#3132", "A run that stopped after step 3 of 6 is resumed: bit by bit the run that did not stop")
def resumed(folder: Path) -> None:
    def trainer(place: str, *callbacks: TrainerCallback) -> WidTrainer:
        model = get_wid_model(bert(**STILL), WidConfig(hidden_size=12, schedule=WidSchedule(**SHORT)))
        settings = arguments(folder / place, max_steps=6, save_strategy="steps", save_steps=3)
        return WidTrainer(model=model, args=settings, train_dataset=rows(), callbacks=list(callbacks))

    class StopAfterThree(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    whole, stopped, again = trainer("whole"), trainer("stopped", StopAfterThree()), trainer("stopped")
    whole.train()
    stopped.train()
    assert stopped.state.global_step == 3
    again.train(resume_from_checkpoint=True)
    one, other = (each.model.merge_and_unload().state_dict() for each in (whole, again))
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


@case(
    KIND,
    "peft#184",
    "Training an adapter that was loaded for inference, which `PeftModel.from_pretrained` does",
    refused=("inference|trainable", "is_trainable=True"),
)
def adapter_loaded_for_inference(folder: Path) -> None:
    half_bert().save_pretrained(folder / "adapter")
    model = PeftModel.from_pretrained(bert(), folder / "adapter")
    WidTrainer(model=model, args=arguments(folder), train_dataset=rows()).train()


@case(KIND, "peft#184", "The same, loaded with `is_trainable=True`: training goes on where it was")
def adapter_loaded_for_training(folder: Path) -> None:
    first = half_bert()
    before = first.merge_and_unload()
    first.save_pretrained(folder / "adapter")
    model = PeftModel.from_pretrained(bert(), folder / "adapter", is_trainable=True)
    same_outputs(before, model.merge_and_unload())
    trainer = WidTrainer(
        model=model, train_dataset=rows(), eval_dataset=rows(), args=arguments(folder, max_steps=20, learning_rate=3e-3)
    )
    score = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < score
