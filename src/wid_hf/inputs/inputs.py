"""What inputs are: the roles of columns that they read, features of rows, and batches of features.

Takes what transformers calls a processing class (tokenizer, image processor, feature extractor); the kinds of inputs
beside it are its subclasses. Called by objectives; knows nothing about models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor

from ..rows.roles import Role

Batch = dict[str, Tensor]
Columns = Mapping[str, list[Any]]  # of several rows, by role
More = Callable[[Columns, Mapping[str, Any]], dict[str, list[Any]]]


class Inputs(ABC):
    """One kind of input.

    Args:
        processor: makes the inputs of one row.

    Attributes:
        argument: the main one of the forward.
        unit: what rows are called.
        numbers: what the numbers of the main input are called.
        roles: what it reads of a row; the first one that is required is what the model looks at.
    """

    argument: str
    unit: ClassVar[str]
    numbers: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]]

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def features(self, rows: Dataset, max_length: int, more: More | None = None) -> Dataset:
        """Return what the forward takes, row by row and not padded.

        Args:
            rows: their columns are roles.
            max_length: of a row, in the unit of the kind of input; the rest is cut off.
            more: gives other columns of the same rows, such as labels; is called with the rows and their features.

        Raises:
            DataError: nothing in them can be read.
        """

        def encode(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            made = self.encode(columns, max_length)
            return {**made, **(more(columns, made) if more is not None else {})}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, **self._told(rows))

    @abstractmethod
    def encode(self, columns: Columns, max_length: int) -> Mapping[str, Any]:
        """Return the features of some rows, column by column."""

    @property
    @abstractmethod
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """What puts features of rows together, padded."""

    def _told(self, rows: Dataset) -> dict[str, Any]:
        return {"desc": f"Preparing {self.unit}"} if isinstance(rows, Dataset) else {}


def present(columns: Columns, roles: Sequence[Role]) -> list[list[Any]]:
    """Return the columns of those `roles` that there are, in their order."""
    return [columns[role.name] for role in roles if role.name in columns]


def batches(
    dataset: Dataset, collator: Callable[[list[dict[str, Any]]], Any], batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of up to `batch_size` rows, in order, none dropped, collated by `collator`."""
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[row] for row in range(start, min(start + batch_size, len(dataset)))]
        yield dict(collator(rows))
