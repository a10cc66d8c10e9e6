"""SQuAD: a question, a text, and the span of the text that answers it, if any does.

Takes files in the official layout or the dataset on the Hub; gives tokens in overlapping windows and figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ....errors import DataError
from ....inputs.windows import PLACES, WindowInputs, misplaced, positions, questions_of
from ....scores.spans import MAX_ANSWER_TOKENS, N_BEST, Window, answers, squad_scores
from .fine_tuning import FineTuned
from .source import from_files_or_hub
from .task import DataPlaces, Rows, Scores

FEATURES = Features(
    {
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
HUB_SPLITS = {"train": "train", "dev": "validation"}


@dataclass(frozen=True)
class QuestionAnswering(FineTuned):
    """Questions on texts.

    Attributes:
        files: file of each split inside the folder `squad`.
        hub: name of the dataset on the Hub.
        may_lack_answers: whether a question may have none.
        n_best: first and last tokens that are paired in each window.
        max_answer_tokens: the longest answer.
        null_threshold: how far the score of "no answer" must be ahead of the best span's to be given.
    """

    files: Mapping[str, str]
    hub: str
    may_lack_answers: bool = False
    n_best: int = N_BEST
    max_answer_tokens: int = MAX_ANSWER_TOKENS
    null_threshold: float = 0.0

    heads: ClassVar[Mapping[type, type]] = MODEL_FOR_QUESTION_ANSWERING_MAPPING
    auto_class: ClassVar[Any] = AutoModelForQuestionAnswering
    head_name: ClassVar[str] = "question answering"
    outputs: ClassVar[int] = 2

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse also a tokenizer that does not give the characters of its tokens."""
        super().check(model, tokenizer)
        WindowInputs(tokenizer)

    def load(self, places: DataPlaces) -> Rows:
        """Return rows with `question`, `context` and right `answers`: their `text` and `answer_start`, a character."""
        rows = places.limited(
            from_files_or_hub("squad", places.folder, self._from_files, (self.hub, None), self._from_hub)
        )
        for split, dataset in rows.items():
            for row in dataset:
                self._check_row(row, split)
        return rows

    def features(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Return one row for each window of `max_length` tokens; windows overlap by a third of that.

        Beside the model's inputs, a window of the split `train` has `start_positions` and `end_positions`, any other
        has its places (`WindowInputs.encode`).
        """
        inputs = WindowInputs(tokenizer)

        def to_train_on(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            made = inputs.encode(columns, max_length)
            return {name: made[name] for name in made.keys() - set(PLACES)} | positions(columns, made)

        return {
            split: dataset.map(
                to_train_on, batched=True, remove_columns=dataset.column_names, desc=f"Tokenizing {self.name}"
            )
            if split == "train"
            else inputs.features(dataset, max_length)
            for split, dataset in rows.items()
        }

    def score(self, rows: Rows, features: Rows, split: str, outputs: tuple[np.ndarray, ...]) -> Scores:
        """Return F1 and exact match of logits `(windows, tokens)`, two tensors."""
        windows, right = features[split], rows[split]["answers"]
        parts = zip(*outputs[:2], windows["offsets"], windows["null"], strict=True)
        predicted = answers(
            rows[split]["context"],
            (Window(*part) for part in parts),
            questions_of(windows["window"]),
            n_best=self.n_best,
            max_answer_tokens=self.max_answer_tokens,
            null_threshold=self.null_threshold if self.may_lack_answers else None,
        )
        return squad_scores(predicted, [each["text"] for each in right])

    def _from_files(self, folder: Path) -> Rows:
        return {
            split: Dataset.from_list(list(_official_rows(folder / name)), features=FEATURES)
            for split, name in self.files.items()
        }

    @staticmethod
    def _from_hub(splits: Mapping[str, Dataset]) -> Rows:
        return {split: splits[name].select_columns([*FEATURES]).cast(FEATURES) for split, name in HUB_SPLITS.items()}

    def _check_row(self, row: Mapping[str, Any], split: str) -> None:
        where = f"the question {row['question']!r} of the split {split!r} of {self.name}"
        right = row["answers"]
        if not right["text"] and not self.may_lack_answers:
            raise DataError(f"{where} has no answer. Use squad_v2 for questions that may have none.")
        if (at := misplaced(row["context"], right)) is not None:
            text, start = right["text"][at], right["answer_start"][at]
            raise DataError(
                f"{where} has the answer {text!r} at character {start}, where its text has "
                f"{row['context'][start : start + len(text)]!r}. `answer_start` counts characters, not bytes: "
                "correct the file."
            )


def _official_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"there is no file {path}. Add it, or move the folder away to load the task from the Hub.")
    try:
        content = json.loads(path.read_bytes())
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield {
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {name: [each[name] for each in question["answers"]] for name in FEATURES["answers"]},
                    }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a file in SQuAD's layout ({type(error).__name__}: {error}). Expected: an object with "
            "`data`, a list of articles with `paragraphs`, each with `context` and `qas`."
        ) from error
