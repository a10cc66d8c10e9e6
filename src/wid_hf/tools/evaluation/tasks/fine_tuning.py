"""Fine-tuning a model with a fresh head on one task, at one learning rate and one seed.

Takes the name of a model and a task's tokens; gives the figures of every split that is scored. The training is
transformers' `Trainer`, the model is the stock class with the task's head.
"""

from __future__ import annotations

import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ....errors import TeacherError
from ...training_bar import TrainingBar
from .task import Rows, Scores, Task


@dataclass(frozen=True)
class FineTuning:
    """How models are fine-tuned, the same for all that are compared.

    Attributes:
        learning_rates: each is tried with each seed; the best on the split `dev` is reported.
        seeds: of the head's weights, dropout and the order of examples.
        epochs: passes over the training examples.
        steps: optimizer steps, instead of `epochs`.
        batch_size: examples per step.
        weight_decay: of AdamW.
        warmup: share of the steps over which the learning rate grows; afterwards it falls linearly to 0.
    """

    learning_rates: tuple[float, ...] = (2e-5, 5e-5, 1e-4)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1


@dataclass(frozen=True)
class FineTuningRun:
    """The result of one fine-tuning; `scores` is None if the outputs became infinite or NaN."""

    scores: dict[str, Scores] | None
    steps: int
    seconds: float


@dataclass(frozen=True)
class FineTuned(Task):
    """A task with labels to train on."""

    heads: ClassVar[Mapping[type, type]]  # transformers' classes with this head by the class of their config
    auto_class: ClassVar[Any]
    head_name: ClassVar[str]
    outputs: ClassVar[int]  # how many of the tensors that such a model returns are logits

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a model that transformers has no such head for."""
        if type(model.config) not in self.heads:
            raise TeacherError(
                f"{self.title} needs a head for {self.head_name}, and transformers has none for {type(model).__name__}."
                " Leave this task out."
            )

    @property
    def head_settings(self) -> dict[str, Any]:
        """The settings of the head in the model's config."""
        return {}

    @abstractmethod
    def score(self, rows: Rows, features: Rows, split: str, outputs: tuple[np.ndarray, ...]) -> Scores:
        """Return the figures of a model's `outputs`, logits for each example of `features[split]`."""


def fine_tune(
    task: FineTuned,
    load: Callable[..., PreTrainedModel],
    rows: Rows,
    features: Rows,
    tokenizer: PreTrainedTokenizerBase,
    how: FineTuning,
    *,
    learning_rate: float,
    seed: int,
) -> FineTuningRun:
    """Train on `features["train"]` and score every other split.

    Args:
        task: what is learned.
        load: makes the model, given an auto class of transformers and settings of its config.
        rows: the task's rows.
        features: their tokens, by `task.features`.
        tokenizer: that made them; it has a padding token.
        how: the settings that all runs share.
        learning_rate: the highest one.
        seed: of the head's weights, dropout and the order of examples; the global generators are not restored.
    """
    began = time.monotonic()
    set_seed(seed)  # the head is drawn when the model is loaded
    model = load(task.auto_class, pad_token_id=tokenizer.pad_token_id, **task.head_settings)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(scratch, how, learning_rate, seed),
            train_dataset=features["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(TrainingBar())
        trainer.train()
        scores = {}
        for split in features:
            if split == "train":
                continue
            outputs = trainer.predict(features[split]).predictions
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if not all(np.isfinite(output).all() for output in outputs[: task.outputs]):
                return FineTuningRun(None, trainer.state.global_step, time.monotonic() - began)
            scores[split] = task.score(rows, features, split, outputs)
    return FineTuningRun(scores, trainer.state.global_step, time.monotonic() - began)


def _arguments(scratch: str, how: FineTuning, learning_rate: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=how.epochs,
        max_steps=-1 if how.steps is None else how.steps,
        per_device_train_batch_size=how.batch_size,
        per_device_eval_batch_size=how.batch_size,
        learning_rate=learning_rate,
        weight_decay=how.weight_decay,
        warmup_steps=how.warmup,
        lr_scheduler_type="linear",
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )
