"""The starts that are compared, each piece of the calibrated one on its own, and what a student is at one of them.

Takes a subject, sizes and a start, gives a wid model or its figures before training, with seconds and memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from memory import peak, reset_peak
from peft import PeftModel
from store import Record
from subjects import Batch, Subject
from transformers import PreTrainedModel

from wid_hf import WidConfig, WidSchedule, get_wid_model
from wid_hf.hub.model_size import model_size


@dataclass(frozen=True)
class Start:
    """How a student starts and becomes narrow: fields of its config, and the switches of `calibrate`.

    `scratch` stands for a stock student with random weights.
    """

    init: str = "calibrated"
    selection: str = "pivots"
    reconstruction: bool = True
    head_svd: bool = True
    pca: bool = True
    schedule: str | WidSchedule = "narrow"
    head_strategy: str = "dim"
    scratch: bool = False


CALIBRATED = "+ attention spectra = calibrated"
STARTS = {
    "identity, first indices": Start("identity", "first"),
    "identity, largest variance": Start("identity", "variance"),
    "selection only (pivots)": Start(reconstruction=False, head_svd=False, pca=False),
    "+ lifts": Start(head_svd=False),
    CALIBRATED: Start(),
}
DECODER_STARTS = {name: STARTS[name] for name in ("identity, first indices", "selection only (pivots)")} | {
    "+ lifts, attention spectra": Start(pca=False),
    "+ stream in an orthogonal basis = calibrated": Start(),
}


SLOW = {"mask_interval": 0.2 / 16, "decay_to_zero_steps": 0.1}
SCHEDULES = {
    "narrow, calibrated": Start(),
    "progressive, dim": Start("identity", "first", schedule=WidSchedule(selection="norm")),
    "progressive, dim, by importance": Start("identity", "first", schedule=WidSchedule()),
    "progressive, head": Start("identity", "first", schedule=WidSchedule(selection="norm"), head_strategy="head"),
    "ten times slower, dim, by norm": Start("identity", "first", schedule=WidSchedule(**SLOW, selection="norm")),
    "ten times slower, dim, by importance": Start("identity", "first", schedule=WidSchedule(**SLOW)),
    "from scratch": Start(scratch=True),
}


def uncalibrated(teacher: PreTrainedModel, sizes: Mapping[str, Any], start: Start) -> PeftModel:
    """Return a student of `teacher` that has seen no data yet."""
    fields = {"head_strategy": start.head_strategy, **sizes}
    return get_wid_model(
        teacher, WidConfig(**fields, init=start.init, selection=start.selection, schedule=start.schedule)
    )


def from_scratch(teacher: PreTrainedModel, sizes: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Return a stock student of these sizes with random weights."""
    student = uncalibrated(teacher, sizes, Start("identity", "first")).merge_and_unload()
    torch.manual_seed(seed)
    return type(student)(student.config).train()


def calibrate(model: PeftModel, start: Start, batches: list[Batch]) -> None:
    """Make the start, if it needs data."""
    if not model.base_model.calibrated:
        model.base_model.calibrate(batches, reconstruction=start.reconstruction, head_svd=start.head_svd, pca=start.pca)


def measure_teacher(subject: Subject) -> Record:
    """Return figures and parameters of the teacher."""
    teacher = subject.teacher()
    return {"scores": subject.score(teacher), "parameters": model_size(teacher).total}


def measure_start(subject: Subject, sizes: Mapping[str, Any], start: Start, seed: int) -> Record:
    """Return figures of a student that nothing trained, and what it took to start it."""
    model = uncalibrated(subject.teacher(), sizes, start)
    batches = subject.calibration(seed)  # tokenized before the clock starts
    before = reset_peak()
    began, used = time.perf_counter(), time.process_time()
    calibrate(model, start, batches)
    return {
        "start_seconds": time.perf_counter() - began,
        "start_cpu_seconds": time.process_time() - used,
        "start_gigabytes": peak() - before,
        "scores": subject.score(model),
        "parameters": model_size(model.merge_and_unload()).total,
    }
