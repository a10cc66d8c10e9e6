"""Multiple choice: a student learns how its teacher weighs the choices of a prompt, and the right ones if given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from ..errors import DataError
from ..inputs import Columns, Inputs
from ..inputs.choices import ChoiceInputs
from ..rows.roles import CHOICES, LABEL, Role
from ..scores.figures import accuracy
from .classification import Classification
from .labels import SINGLE_LABEL
from .objective import Figures

FEWEST = 2


class MultipleChoice(Classification):
    """Give each choice of a prompt a score; the choices exclude each other.

    The model does not say how many choices there are: the first row does, for all have to have as many.
    """

    name = "multiple-choice"
    title = "models of multiple choice"
    one = "a model of multiple choice"

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, ChoiceInputs(inputs.processor))
        self._choices: int | None = None  # of the first row

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' models of multiple choice."""
        return type(teacher).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()

    @property
    def target(self) -> Role:
        """The right choice: its number, counted from 0, or its text."""
        return LABEL

    @property
    def problem(self) -> str:
        """Classes that exclude each other, whatever the config says: it counts no choices."""
        return SINGLE_LABEL

    def why_unusable(self, row: Mapping[str, Any]) -> str | None:
        """Return a reason if a row does not have as many choices as the first one, which has at least two."""
        count = len(row[CHOICES.name])
        if count < FEWEST:
            return f"there are fewer than {FEWEST} choices"
        if self._choices is None:
            self._choices = count
        return None if count == self._choices else f"there are not {self._choices} choices, as in the first row"

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return tokens of prompts with choices and, if there are some, labels.

        Raises:
            DataError: a label is none of its row's choices.
        """
        return self.inputs.features(rows, max_length, _labels if LABEL.name in (rows.column_names or ()) else None)

    def _own(self, found: Tensor, right: Tensor) -> Figures:
        """Return the accuracy of scores `(rows, choices)` on right choices."""
        return {"accuracy": accuracy(found.argmax(-1).numpy(), right.numpy())}


def _labels(columns: Columns, _: Any) -> dict[str, list[Any]]:
    return {"labels": [*map(_number, columns[LABEL.name], columns[CHOICES.name])]}


def _number(label: Any, choices: Sequence[str]) -> int:
    """Return which of the choices a label names."""
    if label in choices:
        return choices.index(label)
    number = int(label) if str(label).isdecimal() or (isinstance(label, float) and label.is_integer()) else -1
    if 0 <= number < len(choices):
        return number
    raise DataError(
        f"The label {label!r} is none of {len(choices)} choices. Legal: 0 to {len(choices) - 1}, or the text of a "
        "choice. Correct the rows, or leave labels out."
    )
