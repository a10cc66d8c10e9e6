"""Trainer's progress bar with loss and tokens per second, instead of lines of figures.

Replaces `ProgressCallback` in any `Trainer`; tqdm tells the time left. Called by `compress` and by the evaluation on
tasks.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(ProgressCallback):
    """Trainer's bar with the last loss and, where the trainer counts tokens, how many it trains on in a second."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step at which training begins: a resumed one has not done the first steps now."""
        super().on_train_begin(args, state, control, **kwargs)
        self._clock = time.monotonic(), int(state.num_input_tokens_seen)
        if self.training_bar is not None:
            self.current_step = self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.last_print_n = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show loss and speed; the report holds all losses."""
        if self.training_bar is None or not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
        before, seen = self._clock
        self._clock = now, tokens
        speed = {"tokens/s": f"{(tokens - seen) / (now - before):,.0f}"} if tokens > seen and now > before else {}
        self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3f}"} | speed)
