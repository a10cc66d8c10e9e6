"""Prompts with choices by a tokenizer: each choice of a row is a text pair of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForMultipleChoice

from ..rows.roles import CHOICES, PROMPT
from .inputs import Columns, Inputs, More
from .texts import TextInputs


class ChoiceInputs(TextInputs):
    """Tokens of a prompt and each of its choices, `max_length` in each pair: lists of one list for each choice.

    Args:
        processor: a working tokenizer.
    """

    unit = "prompts"
    roles = (PROMPT, CHOICES)

    def features(self, rows: Dataset, max_length: int, more: More | None = None) -> Dataset:
        """Return tokens of pairs, each cut after `max_length`, the longer text first."""
        return Inputs.features(self, rows, max_length, more)

    def encode(self, columns: Columns, max_length: int) -> dict[str, Any]:
        """Return what the tokenizer makes, in lists of as many as a row has choices."""
        choices = columns[CHOICES.name]
        prompts = map(repeat, columns[PROMPT.name], map(len, choices))
        made = self._tokenizer(
            [*chain.from_iterable(prompts)], [*chain.from_iterable(choices)], truncation=True, max_length=max_length
        )
        columns_made = {name: iter(values) for name, values in made.items()}
        return {name: [[next(values) for _ in row] for row in choices] for name, values in columns_made.items()}

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads, and makes tensors `(rows, choices, tokens)`."""
        return self._collate

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        collate = DataCollatorForMultipleChoice(self.processor)
        if "labels" in rows[0]:
            return dict(collate(rows))
        made = dict(collate([{**row, "labels": 0} for row in rows]))  # transformers' collator needs labels
        del made["labels"]
        return made
