"""What an objective is: how rows become batches, what a student learns, and by which figures it is judged.

Takes a teacher with its inputs; the objectives beside it are its subclasses. Called by `compress`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..adapter.tuner import WidModel
from ..config import WidConfig
from ..inputs import Batch, Inputs, batches
from ..rows.roles import Role
from ..scores.figures import check_installed
from ..training.accumulation import Reduction
from .frames import frames_of

Figures = dict[str, float]


class Objective(ABC):
    """What one teacher is for.

    Args:
        teacher: in evaluation mode.
        inputs: make its batches.

    Attributes:
        name: in `--task` and in reports.
        title: the kind of models that it is for, in the plural.
        one: the same for one of them.
        has_own_loss: whether models have a loss of their own on rows without labels; otherwise `loss` trains them.
        has_logits: whether models give scores of classes.
        has_one_stack: whether inner states can be compared, for which models have an encoder or a decoder, not both.
        masks: whether the tokenizer needs a mask token.
        reduction: over what `loss` is a mean: "labels" stands for attended positions.
        takes_labels: whether there is a loss on labels.
        figures_need_eval: whether figures on labels are computed by packages of the extra `eval`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    one: ClassVar[str]
    has_own_loss: ClassVar[bool] = False
    has_logits: ClassVar[bool] = True
    has_one_stack: ClassVar[bool] = True
    masks: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "labels"
    takes_labels: ClassVar[bool] = False
    figures_need_eval: ClassVar[bool] = False

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        self.teacher = teacher
        self.inputs = inputs

    @classmethod
    @abstractmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the teacher is of this kind."""

    def configured(self, config: WidConfig) -> WidConfig:
        """Return `config` with what this objective needs of a start."""
        return config

    @property
    def roles(self) -> tuple[Role, ...]:
        """What it reads of a row, without labels."""
        return self.inputs.roles

    @property
    def target(self) -> Role | None:
        """The role of labels, which rows may have or not; None if there is no loss on labels."""
        return None

    def why_unusable(self, row: Mapping[str, Any]) -> str | None:
        """Return why a row, whose columns are roles, must be left out; None if it can be used.

        Rows without a value for one of the roles are left out anyway. Here a sound must have a frame.
        """
        return "the sound is too short" if frames_of(self.teacher, self.inputs, row) == 0 else None

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """What puts rows of features together for training and calibration: it pads, unless a subclass does more."""
        return self.inputs.collator

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return what the models take of each row, cut after `max_length`, with `labels` if the rows have some.

        Raises:
            DataError: nothing in them can be read, or labels are not the teacher's.
        """
        return self.inputs.features(rows, max_length)

    def check_figures(self, features: Dataset) -> None:
        """Raise MissingExtraError if figures of these rows need packages that are not installed."""
        if self.figures_need_eval and "labels" in features.column_names:
            check_installed()

    def scored(self, features: Dataset, batch_size: int, seed: int) -> list[Batch]:
        """Return the batches on which all models are scored.

        Raises:
            DataError: nothing in them can be scored.
            MissingExtraError: figures need packages that are not installed.
        """
        self.check_figures(features)
        names = [name for name in features.column_names if name != "special_tokens_mask"]
        return [*batches(features.select_columns(names), self.collator, batch_size)]

    @abstractmethod
    def wanted(self, batches: Sequence[Batch]) -> Any:
        """Return what the teacher makes of the batches, to compare with; call it before the teacher may train."""

    @abstractmethod
    def score(self, model: Any, batches: Sequence[Batch], wanted: Any | None) -> Figures:
        """Return the figures of a model or of the teacher: those on labels, if there are some, and its fidelity.

        Args:
            model: a stock model or a wid model.
            batches: the result of `scored`.
            wanted: the result of `wanted` for these; None leaves fidelity out, for there is nothing to compare with.
        """

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return how far the student's outputs are from the teacher's for one batch, a mean over `reduction`.

        Objectives whose models have a loss of their own need none.

        Args:
            wid: the wid model.
            student: its outputs.
            teacher: those of its teacher.
            inputs: of both, without labels.
        """
        raise NotImplementedError(f"{self.name} trains with the model's own loss")
