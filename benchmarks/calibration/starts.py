"""The starts that are compared, each piece of the calibrated one on its own, and what a student is at one of them.

Takes a subject, sizes and a start, gives a wid model or its figures before training, with seconds and memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from memory import peak, reset_peak
from peft import PeftModel
from store import Record
from subject import Batch, Sizes, Subject
from transformers import PreTrainedModel

from wid_hf import WidConfig, WidSchedule, get_wid_model
from wid_hf.config import CalibrationConfig
from wid_hf.hub.model_size import model_size


@dataclass(frozen=True)
class Start:
    """How a student starts and becomes narrow: fields of its config, and the switches of `calibrate`.

    `calibration` holds fields of `CalibrationConfig`. `scratch` stands for a stock student with random weights.
    """

    init: str = "calibrated"
    selection: str = "pivots"
    reconstruction: bool = True
    head_svd: bool = True
    pca: bool = True
    schedule: str | WidSchedule = "narrow"
    head_strategy: str = "dim"
    calibration: Mapping[str, Any] = field(default_factory=dict)
    scratch: bool = False


CALIBRATED = "+ stream turned = calibrated"
STARTS = {
    "identity, first indices": Start("identity", "first"),
    "identity, largest variance": Start("identity", "variance"),
    "selection only (pivots)": Start(reconstruction=False, head_svd=False, pca=False),
    "+ lifts": Start(head_svd=False, pca=False),
    "+ attention spectra": Start(pca=False),
    CALIBRATED: Start(),
}
DECODER_STARTS = {name: STARTS[name] for name in ("identity, first indices", "selection only (pivots)")} | {
    "+ lifts, attention spectra": Start(pca=False),
    CALIBRATED: Start(),
}
# What `start` and `train` compare: ways to calibrate.
CALIBRATIONS = {
    "selection": Start(pca=False),
    "turned": Start(),
    "refined": Start(calibration={"refine": "auto"}),
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


def uncalibrated(teacher: PreTrainedModel, sizes: Sizes, start: Start) -> PeftModel:
    """Return a student of `teacher` that has seen no data yet."""
    config = WidConfig(
        **{"head_strategy": start.head_strategy, **sizes},
        init=start.init,
        selection=start.selection,
        schedule=start.schedule,
        calibration_config=CalibrationConfig(**start.calibration),
    )
    return get_wid_model(teacher, config)


def from_scratch(teacher: PreTrainedModel, sizes: Sizes, seed: int) -> PreTrainedModel:
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


def measure_start(subject: Subject, sizes: Sizes, start: Start, batches: list[Batch]) -> Record:
    """Return figures of a student that nothing trained, and what it took to start it from these batches."""
    model = uncalibrated(subject.teacher(), sizes, start)
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


def measure_seconds(
    subject: Subject, sizes: Sizes, starts: Mapping[str, Start], batches: list[Batch], rounds: int
) -> Record:
    """Return the seconds of each start in each round; starts take turns, so that a busy machine slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            model = uncalibrated(subject.teacher(), sizes, start)
            began = time.perf_counter()
            calibrate(model, start, batches)
            seconds[name].append(time.perf_counter() - began)
    return {"rounds": seconds}
