"""What a task is: rows by split, the models that it is for, and figures.

Takes nothing; the kinds of tasks beside it are its subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....rows.division import drawn

Scores = dict[str, float]  # figure -> value
Rows = dict[str, Dataset]  # split -> rows


@dataclass(frozen=True)
class DataPlaces:
    """Where rows come from and how many are taken.

    Attributes:
        folder: with files in the layout of docs/evaluation.md; what it lacks comes from the Hub.
        texts: file or dataset with texts, for tasks that come without.
        column: the column of `texts` that holds the text, as for `load_texts`.
        train_examples: rows to train on, drawn at random but the same in every run; None for all.
        eval_examples: the same for every split that is scored.
    """

    folder: Path | None = None
    texts: str | None = None
    column: str | Sequence[str] | None = None
    train_examples: int | None = None
    eval_examples: int | None = None

    def limited(self, rows: Mapping[str, Dataset]) -> Rows:
        """Return at most the given number of rows of each split; the split `train` is the one to train on."""
        return {
            split: drawn(dataset, self.train_examples if split == "train" else self.eval_examples)
            for split, dataset in rows.items()
        }


@dataclass(frozen=True)
class Task(ABC):
    """One task.

    Attributes:
        name: on the command line.
        title: in tables.
        figures: the scores; the first one on the split `dev` decides among learning rates.
        max_length: tokens per example, longer ones are cut, unless the user gives another length.
    """

    name: str
    title: str
    figures: tuple[str, ...]
    max_length: int

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise TeacherError if the task is not for models of this kind."""

    @abstractmethod
    def load(self, places: DataPlaces) -> Rows:
        """Return the rows of every split; DataError if they cannot be loaded."""

    @abstractmethod
    def features(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Return the tokens of every split, up to `max_length` per example; DataError if they are unfit."""


@dataclass(frozen=True)
class Scored(Task):
    """A task on which a model is scored without training."""

    @abstractmethod
    def score(
        self, model: PreTrainedModel, features: Rows, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> dict[str, Scores]:
        """Return the figures of `model` by split of `features`."""
