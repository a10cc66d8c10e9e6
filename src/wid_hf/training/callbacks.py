"""`WidCallback`: start and schedule of a wid model in transformers' `Trainer`, or any trainer built on it.

Takes a trainer's events; calibrates, and calls the wid model's `wid_begin` and `wid_step`. `WidTrainer` adds one.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..adapter.tuner import WidModel
from ..errors import TrainingError, WidError, WidWarning
from ..plots.widths import WIDTHS_PICTURE, draw_widths
from ..progressive.history import narrow_from, widths_over_steps
from .calibrating import LAYERS_FIRST, calibrate_first
from .held_originals import hold_originals
from .rates import refuse_untrainable


class WidCallback(TrainerCallback):
    """Prepares a wid model for training: `Trainer(model=wid_model, ..., callbacks=[WidCallback()])`.

    Before the first step a model that is not calibrated yet is calibrated on `CalibrationConfig.samples` rows of the
    training data; a resumed run keeps its start. Then the callback runs the schedule of a progressive model. A training
    that begins on a model in the middle of its schedule continues the schedule; if the schedule is done, it trains the
    narrow model.

    Args:
        trainer: the trainer that the callback is added to. With it, kept sizes, the norm of fading rows and tokens per
            second are logged to `report_to`, a picture of widths over steps is drawn at the end, and
            `DistributedDataParallel` is set up again when the model shrinks. A progressive training in several
            processes therefore needs it: `trainer.add_callback(WidCallback(trainer))`.

    Raises:
        WidError: when training begins, if the model is not a wid model, or several processes train a progressive model
            without `trainer`.
        TrainingError: when training begins, if no weight of the model may change, or its layers are still to be
            chosen.
        DataError: when training begins, if the model is not calibrated and the training data cannot calibrate it.
    """

    def __init__(self, trainer: Trainer | None = None) -> None:
        self.trainer = trainer
        self._clock: tuple[float, int] | None = None
        self._before = 0  # steps of the schedule that earlier trainings did

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calibrate, and fix the schedule for `max_steps`; a checkpoint to resume from is loaded already."""
        tuner = _tuner(kwargs["model"])
        refuse_untrainable(kwargs["model"])
        if tuner.waits_for_layers:
            raise TrainingError(LAYERS_FIRST)
        calibrate_first(kwargs["model"], kwargs.get("train_dataloader"), args)
        hold_originals(kwargs["model"], args)
        self._clock = time.perf_counter(), int(state.num_input_tokens_seen)
        if tuner.progress is None or not tuner.is_wide:
            return
        if args.world_size > 1 and self.trainer is None:
            raise WidError(
                "Several processes train, so WidCallback must know the trainer to set their synchronisation up again "
                "when the model shrinks: trainer.add_callback(WidCallback(trainer))."
            )
        wrapped = self.trainer.model_wrapped if self.trainer is not None else None
        # The checkpoint of a resumed run holds as many steps of the schedule as the trainer counts.
        self._before = max(0, int(tuner.progress.steps) - state.global_step)
        tuner.wid_begin(self._before + state.max_steps, kwargs.get("optimizer"), wrapped)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Do what the schedule says, before the step is logged or saved."""
        tuner = _tuner(kwargs["model"])
        shrank = tuner.is_wide and tuner.wid_step(self._before + state.global_step)
        if self.trainer is None or tuner.progress is None:
            return
        if control.should_log or shrank or tuner.progress.last_drop == self._before + state.global_step:
            figures = tuner.progress.figures(tuner.model if tuner.is_wide else None)
            due = control.should_log
            self.trainer.log({**figures, **self._speed(state), "wid/wide": float(tuner.is_wide)})
            control.should_log = due  # a log resets the flag; the trainer's own log, with the loss, comes after

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw widths over steps beside the checkpoints."""
        tuner = _tuner(kwargs["model"])
        if self.trainer is not None and tuner.progress is not None and state.is_world_process_zero:
            history = state.log_history
            picture = Path(args.output_dir or ".") / WIDTHS_PICTURE
            was_wide = any(entry.get("wid/wide") for entry in history)  # False if a narrow model was trained further
            if was_wide and (widths := widths_over_steps(history)):
                try:
                    draw_widths(widths, narrow_from(history), picture)
                except Exception as error:  # no matplotlib, a full disk: the trained model must not be lost
                    warnings.warn(f"{picture} could not be drawn: {error}", WidWarning, stacklevel=2)

    def _speed(self, state: TrainerState) -> dict[str, float]:
        """Return tokens per second since the last call, if `include_num_input_tokens_seen` counts them."""
        now, tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        before, seen = self._clock or (now, tokens)
        self._clock = now, tokens
        return {"wid/tokens_per_second": (tokens - seen) / (now - before)} if tokens > seen and now > before else {}


def _tuner(model: nn.Module) -> WidModel:
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, WidModel):
        raise WidError(
            f"WidCallback prepares what get_wid_model returns for training, not a {type(model).__name__}. "
            "Call get_wid_model(teacher, WidConfig(...)) first."
        )
    return tuner
