"""Ctrl-C and SIGTERM: a run that must stop ends where nothing is lost.

Gives a context in which signals raise `Stopped`: at once, or at the end of a training step or of a move of finished
work. Called by `compress`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVING = b"\nStopping: what there is will be saved first. Once more stops at once and saves nothing.\n"
ONCE = 1.0  # seconds in which a second signal counts as the same one: launchers may repeat a Ctrl-C


class Stops:
    """A context in which signals that end the process raise `Stopped` in the main thread.

    Handlers that other code has set, and signals that are ignored (`nohup`), stay as they are.

    Attributes:
        pending: the signal that came while it had to wait.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._pending_at = 0.0
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = handler
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Let a signal wait in `pending` until the block has ended; a second one does not wait."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._waits and self.pending is None:
            self.pending, self._pending_at = number, now
            # Not print: the signal may have come in the middle of one.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, SAVING)
        elif self.pending is None or now - self._pending_at > ONCE:
            raise Stopped(number)


class StopAfterStep(TrainerCallback):
    """Ends training after the step in which a signal came to one of its processes, with a checkpoint if it has some."""

    def __init__(self, stops: Stops) -> None:
        self.stops = stops

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the trainer stop if a signal is pending, in all processes after the same step."""
        if args.world_size > 1 and self._pending_anywhere(args) and self.stops.pending is None:
            self.stops.pending = signal.SIGTERM
        if self.stops.pending is not None:
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO

    def _pending_anywhere(self, args: TrainingArguments) -> bool:
        pending = torch.tensor(float(self.stops.pending is not None), device=args.device)
        return bool(reduce(pending, "sum"))
