"""Labels of rows as the numbers that a model's loss takes. Called by the objectives of classifiers and taggers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
from transformers import PretrainedConfig

from ..errors import DataError, WidWarning

# Values of `config.problem_type`.
REGRESSION, SINGLE_LABEL, SEVERAL_LABELS = "regression", "single_label_classification", "multi_label_classification"
MANY = 12  # names in a message
INSTEAD = "Correct the rows, leave those out that have other labels, or use no labels (--column label=, or tags=)."


class Labels:
    """The classes of a model, by number and by name.

    Args:
        config: of the model; `num_labels`, `label2id` and `problem_type` are read.
        names: of the numbers in a column, if the dataset has names for them (`datasets.ClassLabel`). Names that are all
            unlike the model's own stand for numbers in their order, which a warning tells.

    Raises:
        DataError: some names are the model's, and others are not.
    """

    def __init__(self, config: PretrainedConfig, names: Sequence[str] | None = None) -> None:
        self.count = int(config.num_labels)
        self.numbers = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        usual = REGRESSION if self.count == 1 else SINGLE_LABEL
        self.problem = str(getattr(config, "problem_type", None) or usual)
        # Numbers of a column are another order of the same names in, for example, a folder of images.
        self._names = [*names] if names is not None and self._knows(names) else None

    def _knows(self, names: Sequence[str]) -> bool:
        """Return whether names of a dataset are the model's."""
        strange = [name for name in names if name not in self.numbers]
        if strange and len(strange) < len(names):
            raise DataError(
                f"The dataset has classes that are none of the model's: {', '.join(strange[:MANY])}. Legal: "
                f"{self._legal()}. {INSTEAD}"
            )
        unnamed = all(name == f"LABEL_{number}" for name, number in self.numbers.items())
        if strange and not unnamed:
            own = {number: name for name, number in self.numbers.items()}
            pairs = [f"{name} as {own.get(number, number)}" for number, name in enumerate(names)]
            warnings.warn(
                f"The dataset's classes are not named as the model's, so they are taken by number: "
                f"{', '.join(pairs[:MANY])}{', ...' if len(pairs) > MANY else ''}.",
                WidWarning,
                stacklevel=2,
            )
        return not strange

    def target(self, value: Any) -> int | float | list[float]:
        """Return what the loss takes for one row's label.

        Args:
            value: for classes a name or a number; for labels that do not exclude each other a list of them, or one 0 or
                1 for each label of the model; for a regression a number, or one for each output.

        Raises:
            DataError: it is none of these.
        """
        if self.problem == REGRESSION:
            return self._quantity(value)
        if self.problem == SEVERAL_LABELS:
            return self._several(value)
        return self.number(value)

    def number(self, value: Any) -> int:
        """Return the number of the class that a name or a number stands for.

        Raises:
            DataError: the model has no such class.
        """
        if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
            number = int(value)
            if self._names is not None and 0 <= number < len(self._names):
                return self.numbers[self._names[number]]
            if 0 <= number < self.count:
                return number
        elif isinstance(value, str):
            if value in self.numbers:
                return self.numbers[value]
            if value.isdecimal() and int(value) < self.count:
                return int(value)
        raise DataError(f"The label {value!r} is none of the model's {self.count}. Legal: {self._legal()}. {INSTEAD}")

    def _quantity(self, value: Any) -> float | list[float]:
        try:
            numbers = [float(each) for each in (value if isinstance(value, list | tuple) else [value])]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) == self.count and all(map(math.isfinite, numbers)):
            return numbers if self.count > 1 else numbers[0]
        wanted = "a number" if self.count == 1 else f"a list of {self.count} numbers"
        raise DataError(f"The label {value!r} is not {wanted}, which the model predicts. Correct the rows.")

    def _several(self, value: Any) -> list[float]:
        given = list(value) if isinstance(value, list | tuple) else [value]
        if len(given) == self.count and all(each in (0, 1) for each in given):
            return [float(each) for each in given]
        on = {self.number(each) for each in given}
        return [float(number in on) for number in range(self.count)]

    def _legal(self) -> str:
        names = sorted(self.numbers, key=lambda name: self.numbers[name]) if len(self.numbers) == self.count else []
        shown = ", ".join(names[:MANY]) + (", ..." if len(names) > MANY else "")
        return f"0 to {self.count - 1}" + (f", or {shown}" if names else "")


def names_of(rows: Any, column: str) -> list[str] | None:
    """Return the names that a dataset has for the numbers in a column, or in the lists in a column."""
    feature = (rows.features or {}).get(column)
    inner = getattr(feature, "feature", feature)
    return [*inner.names] if isinstance(inner, datasets.ClassLabel) else None
