"""What is measured: a teacher with the data that its students start from, train on and are scored on.

Takes folders of teachers and data; gives models, calibration batches and figures. No figure is from data that a student
was calibrated or trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wid_hf.inputs import batches, tokenize
from wid_hf.rows import load_texts
from wid_hf.tools.teachers import load_teacher, load_tokenizer
from wid_hf.training.imitation import Imitation

SCORE_BATCH = 32
CALIBRATION_BATCH = 32

Batch = dict[str, Tensor]
Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class Subject(ABC):
    """A teacher with its data.

    Attributes:
        name: what tables call it.
        folder: the teacher, with its tokenizer if it reads text.
        sizes: the students asked for, by the name of their width.
        train: file to calibrate and train on.
        held_out: file to score on.
        calibration_texts: how many rows a calibration sees.
        scored_texts: how many held-out rows (or pairs) are scored.
    """

    name: str
    folder: Path
    sizes: Mapping[str, Sizes]
    train: Path
    held_out: Path
    calibration_texts: int
    scored_texts: int

    figures: ClassVar[Mapping[str, str]]  # what `score` gives, with how a table writes it

    def teacher(self) -> PreTrainedModel:
        """Return the teacher, loaded anew: training may change its weights."""
        return load_teacher(str(self.folder))

    @abstractmethod
    def calibration(self, seed: int, count: int | None = None) -> list[Batch]:
        """Return batches of `count` rows, or of `calibration_texts`, as training would see them."""

    @abstractmethod
    def score(self, model: Any) -> dict[str, float]:
        """Return `figures` of a teacher or wid model on held-out rows."""


@dataclass(frozen=True)
class TextSubject(Subject):
    """A teacher that reads text.

    Attributes:
        columns: which columns of the files hold texts.
        max_length: tokens per text.
    """

    columns: tuple[str, ...]
    max_length: int

    objective: ClassVar[str | None] = None  # of `wid-hf compress`, which knows learning rates for it
    grid: ClassVar[tuple[tuple[float, float], ...]] = ()  # the same, for the sweep

    @property
    def imitation(self) -> Imitation | None:
        """The loss by which students learn their teacher's outputs; None if they learn labels."""
        return None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's tokenizer."""
        return load_tokenizer(str(self.folder))

    @cached_property
    def train_set(self) -> Dataset:
        """Tokens of all training texts."""
        parts = [load_texts(str(self.train), column=column) for column in self.columns]
        return tokenize(concatenate_datasets(parts), self.tokenizer, self.max_length)

    @property
    @abstractmethod
    def collator(self) -> Any:
        """What puts texts together as training sees them."""

    def calibration(self, seed: int, count: int | None = None) -> list[Batch]:
        """Return batches of texts drawn from the training set; fewer are the first of more."""
        count = min(count or self.calibration_texts, len(self.train_set))
        return self.collated(self.train_set.shuffle(seed=seed).select(range(count)), seed)

    def calibration_on(self, texts: list[str], seed: int) -> list[Batch]:
        """Return batches of these texts as training would see them."""
        return self.collated(tokenize(Dataset.from_dict({"text": texts}), self.tokenizer, self.max_length), seed)

    def collated(self, tokens: Dataset, seed: int) -> list[Batch]:
        """Return batches of tokenized texts, in which masking is drawn with this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = list(batches(tokens, self.collator, CALIBRATION_BATCH))
        return [{name: t for name, t in batch.items() if name != "special_tokens_mask"} for batch in made]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on this device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
