"""One short training of a student from one of its starts.

Takes a subject, sizes, a start and settings; gives figures before and after, and the training losses.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from accelerator import chosen_device
from peft import PeftModel
from starts import Start, calibrate, from_scratch, uncalibrated
from store import Record
from subject import Sizes, TextSubject
from transformers import PrinterCallback, ProgressCallback

from wid_hf import MergedTrainer, StudentTrainer, WidTrainer, WidTrainingArguments
from wid_hf.progressive.history import narrow_from, widths_over_steps
from wid_hf.training.imitating_trainer import ImitatingTrainer
from wid_hf.training.merged_trainer import merged as stock


def train(
    subject: TextSubject,
    sizes: Sizes,
    start: Start,
    *,
    steps: int,
    batch_size: int,
    rates: tuple[float, float],
    seed: int,
    merged: bool = False,
) -> Record:
    """Return what `steps` steps make of a student; all but the start is as `wid-hf compress` does it.

    Args:
        subject: gives teacher, data and trainer.
        sizes: the student's.
        start: where it starts.
        steps: optimizer steps.
        batch_size: texts per step.
        rates: learning rates of compactors and of the teacher's weights; a stock student has the first.
        seed: of the texts calibrated on, data order, masking and dropout.
        merged: whether the student is merged at its start, so that a stock student trains.
    """
    teacher = subject.teacher().to(chosen_device())  # where the start is made, too
    if start.scratch:
        model: Any = from_scratch(teacher, sizes, seed)
    else:
        model = uncalibrated(teacher, sizes, start)
        calibrate(model, start, subject.calibration(seed))
    before = subject.score(model)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = WidTrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=rates[0],
            compactor_learning_rate=rates[0],
            teacher_learning_rate=rates[1],
            weight_decay=0.01,
            warmup_steps=0.05,
            lr_scheduler_type="linear",
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            seed=seed,
        )
        trainer = _trainer(
            subject,
            model,
            merged,
            args=arguments,
            train_dataset=subject.train_set,
            data_collator=subject.collator,
        )
        trainer.pop_callback(ProgressCallback)
        trainer.pop_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    history = trainer.state.log_history
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    return {
        "before": before,
        "scores": subject.score(trainer.model),
        "losses": losses,
        "training_seconds": seconds,
        "narrow_from": narrow_from(history),
        "widths": widths_over_steps(history),
    }


def _trainer(subject: TextSubject, model: Any, merged: bool, **given: Any) -> StudentTrainer:
    """Return the trainer of a wid model, of the student that it merges to, or of a stock student from scratch.

    No student trains with dropout, as `wid-hf compress` has it.
    """
    given["dropout"] = False
    if not isinstance(model, PeftModel):
        return StudentTrainer(model=model, **given)
    if subject.imitation is not None:
        return (MergedTrainer if merged else ImitatingTrainer)(model=model, imitation=subject.imitation, **given)
    return StudentTrainer(model=stock(model), **given) if merged else WidTrainer(model=model, **given)
