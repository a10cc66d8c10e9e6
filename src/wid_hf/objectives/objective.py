"""What an objective is: how rows become batches, what a student learns, and by which figures it is judged.

Takes a teacher with its tokenizer; the objectives beside it are its subclasses. Called by `compress`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..adapter.tuner import WidModel
from ..tokens import batches, tokenize
from ..training.accumulation import Reduction

Batch = dict[str, Tensor]
Figures = dict[str, float]


class Objective(ABC):
    """What one teacher is for.

    Args:
        teacher: in evaluation mode.
        tokenizer: a working one: it has a padding token.

    Attributes:
        name: in `--task` and in reports.
        title: the kind of models that it is for, in the plural.
        one: the same for one of them.
        has_own_loss: whether models have a loss of their own on texts without labels; otherwise `loss` trains them.
        masks: whether the tokenizer needs a mask token.
        reduction: over what `loss` is a mean: "labels" stands for attended positions.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    one: ClassVar[str]
    has_own_loss: ClassVar[bool] = False
    masks: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "labels"

    def __init__(self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.teacher = teacher
        self.tokenizer = tokenizer

    @classmethod
    @abstractmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the teacher is of this kind."""

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """What puts rows of features together for training and calibration: it pads, unless a subclass does more."""
        return DataCollatorWithPadding(self.tokenizer)

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return the tokens of rows with a text, cut after `max_length`.

        Raises:
            DataError: all tokens are special or unknown.
        """
        return tokenize(rows, self.tokenizer, max_length)

    def scored(self, features: Dataset, batch_size: int, seed: int) -> list[Batch]:
        """Return the batches on which all models are scored.

        Raises:
            DataError: nothing in them can be scored.
        """
        rows = features.select_columns(["input_ids", "attention_mask"])
        return list(batches(rows, DataCollatorWithPadding(self.tokenizer), batch_size))

    @abstractmethod
    def wanted(self, batches: Sequence[Batch]) -> Any:
        """Return what the teacher makes of the batches, to compare with; call it before the teacher may train."""

    @abstractmethod
    def score(self, model: Any, batches: Sequence[Batch], wanted: Any) -> Figures:
        """Return the figures of a model, the teacher among them.

        Args:
            model: a stock model or a wid model.
            batches: the result of `scored`.
            wanted: the result of `wanted` for these.
        """

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return how far the student's outputs are from the teacher's for one batch, a mean over `reduction`.

        Objectives whose models have a loss of their own need none.

        Args:
            wid: the wid model.
            student: its outputs.
            teacher: those of its teacher.
            inputs: of both.
        """
        raise NotImplementedError(f"{self.name} trains with the model's own loss")
