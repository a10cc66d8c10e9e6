"""`WidTrainer` is a drop-in for `Trainer`: the same options give the same numbers, side by side."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from toys import noisy
from training_runs import HALF, QUIET
from transformers import (
    BertForMaskedLM,
    Trainer,
    TrainingArguments,
)

from wid_hf import WidCallback, WidTrainer, get_wid_model

ROWS, LENGTH = 16, 8


def rows(count: int = ROWS) -> Dataset:
    """Rows of unequal lengths, so that sampling by length has something to do, with unequal numbers of labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (count, LENGTH), generator=generator)
    labels = torch.where(torch.rand(count, LENGTH, generator=generator) < 0.4, ids, -100)
    labels[:, 0] = ids[:, 0]
    mask = torch.ones_like(ids)
    mask[::2, LENGTH - 2 :] = 0
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()})


def options(folder: Path, **given: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        **QUIET,
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    return {**defaults, **given}


def wid_model(teacher: BertForMaskedLM, **given: Any) -> PeftModel:
    model = get_wid_model(deepcopy(teacher), HALF, **given)
    noisy(model, 0.05)
    return model


def accuracy(prediction: Any) -> dict[str, float]:
    predictions = prediction.predictions
    if predictions.ndim == 3:
        predictions = predictions.argmax(-1)
    counted = prediction.label_ids != -100
    return {"accuracy": float((predictions == prediction.label_ids)[counted].mean())}


class Counted:
    """A metric by batches, as `batch_eval_metrics` asks for."""

    def __init__(self) -> None:
        self.right: list[float] = []

    def __call__(self, prediction: Any, compute_result: bool = False) -> dict[str, float]:
        counted = prediction.label_ids != -100
        self.right += (prediction.predictions.argmax(-1) == prediction.label_ids)[counted].float().tolist()
        if not compute_result:
            return {}
        right, self.right = self.right, []
        return {"accuracy": float(np.mean(right))}


def with_inputs(prediction: Any) -> dict[str, float]:
    assert prediction.inputs.shape == prediction.label_ids.shape and prediction.losses is not None
    return accuracy(prediction)


def best_class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(-1)


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    log_p = outputs.logits.log_softmax(-1)
    chosen = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    losses = (-((1 - chosen.exp()) ** 2) * chosen)[labels != -100]
    return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)


def given_optimizer(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))}


def plain(**given: Any) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda _: given


SAVING = {"save_strategy": "steps", "save_steps": 2}
CASES: dict[str, tuple[dict[str, Any], Callable[[nn.Module], dict[str, Any]]]] = {
    "label_smoothing": ({"label_smoothing_factor": 0.1}, plain()),
    "label_smoothing and metrics": ({"label_smoothing_factor": 0.1}, plain(compute_metrics=accuracy)),
    "eval_on_start": ({"eval_on_start": True}, plain(compute_metrics=accuracy)),
    "load_best_model_at_end": ({"load_best_model_at_end": True, "learning_rate": 3.0, **SAVING}, plain()),
    "save best, keep one": (
        {
            "load_best_model_at_end": True,
            "save_strategy": "best",
            "metric_for_best_model": "accuracy",
            "save_total_limit": 1,
        },
        plain(compute_metrics=accuracy),
    ),
    "save_only_model": ({"save_only_model": True, **SAVING}, plain()),
    "auto_find_batch_size": ({"auto_find_batch_size": True}, plain()),
    "group_by_length": ({"train_sampling_strategy": "group_by_length"}, plain()),
    "sequential": ({"train_sampling_strategy": "sequential", "num_train_epochs": 2, "max_steps": -1}, plain()),
    "torch_empty_cache_steps": ({"torch_empty_cache_steps": 1}, plain()),
    "neftune": ({"neftune_noise_alpha": 5.0}, plain()),
    "tokens seen": ({"include_num_input_tokens_seen": "all"}, plain()),
    "accelerator_config": ({"accelerator_config": {"split_batches": True, "non_blocking": True}}, plain()),
    "activation_checkpointing": ({"activation_checkpointing": True}, plain()),
    "bf16": ({"bf16": True}, plain()),
    "preprocess_logits_for_metrics": ({}, plain(compute_metrics=accuracy, preprocess_logits_for_metrics=best_class)),
    "batch_eval_metrics": ({"batch_eval_metrics": True}, lambda _: {"compute_metrics": Counted()}),
    "include_for_metrics": ({"include_for_metrics": ["inputs", "loss"]}, plain(compute_metrics=with_inputs)),
    "eval_accumulation_steps": ({"eval_accumulation_steps": 1, "eval_delay": 1}, plain(compute_metrics=accuracy)),
    "prediction_loss_only": ({"prediction_loss_only": True}, plain()),
    "compute_loss_func": ({}, plain(compute_loss_func=focal)),
    "compute_loss_func, accumulated": (
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        plain(compute_loss_func=focal),
    ),
    "optimizers": ({}, given_optimizer),
    "optimizer_cls_and_kwargs": (
        {},
        plain(optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5})),
    ),
    "adafactor": ({"optim": "adafactor"}, plain()),
    "plateau": ({"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}, plain()),
    "cosine and warmup": ({"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1}, plain()),
    "several evaluation sets": ({}, plain(eval_dataset={"a": rows(8), "b": rows(12)})),
    "dataloader_drop_last": ({"dataloader_drop_last": True, "per_device_train_batch_size": 5}, plain()),
    "seeds": ({"full_determinism": False, "seed": 7, "data_seed": 3}, plain()),
}


def scores(trainer: Trainer) -> list[dict[str, float]]:
    timed = ("runtime", "per_second", "flos", "preparation")
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in trainer.state.log_history
    ]


# Options that change the loss, the batches, the optimizer or what is kept: one of each kind.
QUICK = {"label_smoothing", "load_best_model_at_end", "neftune", "compute_loss_func, accumulated", "optimizers"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, id=name.replace(" ", "-").replace(",", ""), marks=() if name in QUICK else pytest.mark.slow)
        for name in CASES
    ],
)
def test_an_option_does_what_it_does_in_trainer(case: str, tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    given, others = CASES[case]
    ended = []
    for kind, more in ((Trainer, {"callbacks": [WidCallback()]}), (WidTrainer, {})):
        model = wid_model(tiny_bert)
        data = {"train_dataset": rows(), "eval_dataset": rows(12)}
        args = TrainingArguments(**options(tmp_path / kind.__name__, **given))
        trainer = kind(model=model, args=args, **{**data, **others(model), **more})
        trainer.train()
        ended.append((trainer, scores(trainer), trainer.evaluate()))
    (_, of_stock, after_stock), (wid, of_wid, after_wid) = ended
    assert type(wid) is WidTrainer and len(of_stock) == len(of_wid) > 4
    for one, other in zip(of_stock, of_wid, strict=True):
        assert other == pytest.approx(one, rel=2e-2 if given.get("bf16") else 1e-3, abs=1e-5)
    for name in (name for name in after_stock if "loss" in name or "accuracy" in name):
        assert after_wid[name] == pytest.approx(after_stock[name], rel=1e-2 if given.get("bf16") else 1e-3), name
    assert sorted(p.name for p in (tmp_path / "Trainer").iterdir()) == sorted(
        p.name for p in (tmp_path / "WidTrainer").iterdir()
    )
