"""What a trainer asks the objective of a model, and the figures of evaluations by it.

`wid_hf.objectives` has the tasks; this only names what is used of them. Called by `WidTrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainingArguments

from ..adapter.tuner import WidModel
from .accumulation import Reduction


class Task(Protocol):
    """What a teacher is for; see `wid_hf.objectives.Objective`."""

    has_own_loss: bool
    reduction: Reduction

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """What puts rows of features together."""

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return how far the student's outputs are from the teacher's."""

    def scored(self, features: Any, batch_size: int, seed: int) -> list[Any]:
        """Return the batches on which models are scored."""

    def wanted(self, batches: Sequence[Any]) -> Any:
        """Return what the teacher makes of them."""

    def score(self, model: Any, batches: Sequence[Any], wanted: Any) -> dict[str, float]:
        """Return the figures of a model."""


class TaskScorer:
    """Scores models by a task, on rows that are kept with what the teacher makes of them.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kept: tuple[Any, list[Any], Any] | None = None  # rows, batches, the teacher's outputs

    def remember(self, rows: Any, args: TrainingArguments) -> None:
        """Keep what the teacher makes of `rows` now, unless they are those that are kept already."""
        if self._kept is None or self._kept[0] is not rows:
            batches = self._task.scored(rows, args.per_device_eval_batch_size, args.seed)
            self._kept = rows, batches, self._task.wanted(batches)

    def score(self, model: Any, rows: Any, args: TrainingArguments) -> dict[str, float]:
        """Return the figures of `model` on `rows`."""
        self.remember(rows, args)
        assert self._kept is not None
        return self._task.score(model, *self._kept[1:])
