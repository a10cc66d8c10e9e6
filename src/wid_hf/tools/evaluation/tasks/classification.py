"""Classes or a score for a text or a pair of texts.

Takes a source of rows with `text`, or `text_a` and `text_b`, and `label`; gives tokens and figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from ....errors import DataError
from ....inputs import check_content
from ....scores.figures import FIGURES
from .fine_tuning import FineTuned
from .source import Source
from .task import DataPlaces, Rows, Scores

TEXTS = ("text", "text_a", "text_b")


@dataclass(frozen=True)
class Classification(FineTuned):
    """A class or, without `classes`, a score.

    Attributes:
        source: the rows.
        classes: the labels that rows may have; none for a score, which may be any number.
    """

    source: Source
    classes: tuple[int, ...] = (0, 1)

    heads: ClassVar[Mapping[type, type]] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    head_name: ClassVar[str] = "sequence classification"
    outputs: ClassVar[int] = 1

    @property
    def head_settings(self) -> dict[str, Any]:
        """As many outputs as classes, or one that is fitted by least squares."""
        if self.classes:
            return {"num_labels": len(self.classes), "problem_type": "single_label_classification"}
        return {"num_labels": 1, "problem_type": "regression"}

    def load(self, places: DataPlaces) -> Rows:
        """Return rows with texts and a legal `label`; DataError names the first label that is none."""
        rows = places.limited(self.source.load(places.folder))
        for split, dataset in rows.items():
            for label in dataset.unique("label"):
                legal = label in self.classes if self.classes else isinstance(label, int | float)
                if not legal or isinstance(label, bool):
                    expected = ", ".join(map(str, self.classes)) or "numbers"
                    raise DataError(
                        f"the split {split!r} of {self.name} has the label {label!r}. Legal: {expected}. "
                        "Correct the rows, or drop those without a label."
                    )
        return rows

    def features(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Return input_ids and what else the tokenizer makes, each a list of ints per row, and `labels`."""
        made = {split: self._tokens(dataset, tokenizer, max_length) for split, dataset in rows.items()}
        check_content(made["train"], tokenizer, max_length)
        return made

    def score(self, rows: Rows, features: Rows, split: str, outputs: tuple[np.ndarray, ...]) -> Scores:
        """Return the task's figures of logits `(n, classes)` or scores `(n, 1)`."""
        logits = outputs[0]
        predicted = logits.argmax(-1) if self.classes else logits[:, 0]
        right = np.asarray(features[split]["labels"])
        return {name: FIGURES[name](predicted, right) for name in self.figures}

    def _tokens(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        texts = [name for name in TEXTS if name in rows.column_names]
        number = {label: place for place, label in enumerate(self.classes)}

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            encoded = dict(tokenizer(*(batch[name] for name in texts), truncation=True, max_length=max_length))
            labels = [number[label] if self.classes else float(label) for label in batch["label"]]
            return encoded | {"labels": labels}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"Tokenizing {self.name}")
