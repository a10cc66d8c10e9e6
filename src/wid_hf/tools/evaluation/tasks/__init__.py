"""Tasks that models are compared on: each is data, figures and a head, declared in `registry.py`.

Takes a model's name and data in files or on the Hub; gives figures by split. Called by `wid_hf.tools.evaluate`.
"""

from __future__ import annotations

from .fine_tuning import FineTuned, FineTuning, FineTuningRun, fine_tune
from .registry import TASKS, find_tasks
from .task import DataPlaces, Scored, Scores, Task

__all__ = [
    "TASKS",
    "DataPlaces",
    "FineTuned",
    "FineTuning",
    "FineTuningRun",
    "Scored",
    "Scores",
    "Task",
    "find_tasks",
    "fine_tune",
]
