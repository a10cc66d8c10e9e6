"""Rows whose input stays as it is stored: the numbers of images and sounds are made batch by batch.

A table of them would fill the disk. The subclasses beside it are for images and for sounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from datasets import Dataset
from transformers import default_data_collator

from ..rows.roles import Role
from .inputs import Inputs, More


class StoredInputs(Inputs):
    """One kind of input that the collator reads.

    Args:
        processor: makes the inputs of some rows.
        argument: of the forward, under which the batch has them.

    Attributes:
        loaders: auto classes of transformers by which `processor` is loaded, the first that can.
    """

    roles: ClassVar[tuple[Role]]
    numbers = "values"
    loaders: ClassVar[tuple[Any, ...]]

    def __init__(self, processor: Any, argument: str) -> None:
        super().__init__(processor)
        self.argument = argument

    @classmethod
    def can_use(cls, processor: Any) -> bool:
        """Return whether what an auto class loaded makes such inputs: some load what else there is."""
        return True

    def features(self, rows: Dataset, max_length: int, more: More | None = None) -> Dataset:
        """Return rows with the column `argument`, which holds what is stored, and those that `more` gives.

        The column has the name of what the collator makes of it, for `Trainer` drops all that no forward takes.

        Args:
            rows: their columns are roles.
            max_length: has no effect: images and sounds are taken whole.
            more: gives other columns of the same rows, such as labels; is called with the rows.
        """
        (role,) = self.roles
        if more is None:
            rows = rows.select_columns([role.name])
        else:
            others = [name for name in rows.column_names if name != role.name]
            rows = rows.map(lambda columns: more(columns, {}), batched=True, remove_columns=others, **self._told(rows))
        return rows.rename_column(role.name, self.argument)

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Reads the inputs of rows and puts them together, and their labels."""
        return self._collate

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        (role,) = self.roles
        made = dict(self.encode({role.name: [row[self.argument] for row in rows]}, 0))
        others = [{name: value for name, value in row.items() if name != self.argument} for row in rows]
        return {**made, **default_data_collator(others)} if others[0] else made
