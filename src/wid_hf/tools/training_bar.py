"""Trainer's progress bar without its lines of figures.

Replaces `ProgressCallback` in any `Trainer`. Called by `compress` and by the evaluation on tasks.
"""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingBar(ProgressCallback):
    """Trainer's bar with the loss, instead of a line for every logged figure."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss; the report holds all of them."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
