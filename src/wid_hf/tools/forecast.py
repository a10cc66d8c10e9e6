"""What training a student would take, and how good its start is: measured on a few steps, before anybody trains.

Takes a teacher, a `WidConfig`, rows and settings; gives a `Forecast`. Called by `plan_report`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config import WidConfig
from ..layers.stacked_fold import drop_kept_stacks
from ..training.step_memory import StepMemory, StepMemoryCounter
from .compression import Compression
from .recipe import CompressSettings
from .teachers import Teacher
from .training_data import Source, load_training_data

COUNTED, TIMED = 2, 3  # the step whose memory is counted, after one that warms up; steps that are timed after it
THOUSAND = 1000  # steps that are told


@dataclass(frozen=True)
class Forecast:
    """What a training would take.

    Attributes:
        scores: the objective's figures on held-out rows, of `teacher` and `start`.
        held_out: rows that were scored.
        step_seconds: median wall time of a step.
        memory: bytes at the peak of a step, part by part. They are counted; what an allocator or a kernel takes for
            itself is not in it.
        batch_size: rows of a step.
        max_length: tokens of a row at most.
    """

    scores: dict[str, dict[str, float]]
    held_out: int
    step_seconds: float
    memory: StepMemory
    batch_size: int
    max_length: int

    @property
    def words(self) -> str:
        """Time and memory in words."""
        minutes = THOUSAND * self.step_seconds / 60
        return (
            f"Training with {self.batch_size} rows of up to {self.max_length} tokens a step: {minutes:,.1f} minutes "
            f"per {THOUSAND:,} steps on this machine, about {self.memory.total / 2**20:,.0f} MiB of memory."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the figures as text, after a header."""
        header = ("", *self.scores)
        names = next(iter(self.scores.values()))
        return [header, *((n.replace("_", " "), *(f"{each[n]:.4f}" for each in self.scores.values())) for n in names)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {
            "memory": self.memory.total,
            "memory_parts": asdict(self.memory),
            "seconds_per_1000_steps": THOUSAND * self.step_seconds,
        }


def forecast(
    teacher: Teacher, config: WidConfig, train: Source, settings: CompressSettings, held_out: Source | None = None
) -> Forecast:
    """Make a student's calibrated start, score it, and train it for a few steps that are measured.

    Args:
        teacher: the teacher, which stays as it is.
        config: the student.
        train: rows, or their name.
        settings: how `compress` would train; the number of steps does not matter.
        held_out: rows to score on; by default those that `settings` name, or a part of `train`.

    Raises:
        WidError: one of its subclasses, as `compress` raises.
    """
    few = replace(settings, steps=COUNTED + TIMED)
    with TemporaryDirectory(prefix="wid_hf-") as scratch:
        job = Compression(teacher, config, few, train=train, held_out=held_out)
        samples = max(job.config.calibration_config.samples, few.steps * few.batch_size)
        # No more rows than these steps need are made ready.
        job.data = load_training_data(train, job.objective, replace(job.settings, steps=0), samples, held_out)
        drop_kept_stacks()  # of candidates that were tried before; a training alone would not have them
        steps = _Steps()
        job.begin(Path(scratch), [steps], saves=False)
        counter = StepMemoryCounter(job.trainer, job.wid_model, COUNTED)
        job.trainer.add_callback(counter)
        scores: dict[str, dict[str, float]] = job.score_start()["scores"]
        job.train()
    assert counter.found is not None
    return Forecast(
        scores,
        len(job.data.held_out),
        median(steps.seconds[COUNTED:]),
        counter.found,
        settings.batch_size,
        job.settings.max_length,
    )


class _Steps(TrainerCallback):
    """Times every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to time."""
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what the step took."""
        self.seconds.append(time.perf_counter() - self._began)
