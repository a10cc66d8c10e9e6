"""SQuAD: a question, a text, and the span of the text that answers it, if any does.

Takes files in the official layout or the dataset on the Hub; gives tokens in overlapping windows and figures.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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

from ....errors import DataError, TeacherError
from .fine_tuning import FineTuned
from .source import from_files_or_hub
from .spans import NOT_CONTEXT, Window, answer, squad_scores
from .task import DataPlaces, Rows, Scores

FEATURES = Features(
    {
        "question": Value("string"),
        "context": Value("string"),
        "answers": List(Value("string")),
        "starts": List(Value("int64")),
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
    n_best: int = 20
    max_answer_tokens: int = 30
    null_threshold: float = 0.0

    heads: ClassVar[Mapping[type, type]] = MODEL_FOR_QUESTION_ANSWERING_MAPPING
    auto_class: ClassVar[Any] = AutoModelForQuestionAnswering
    head_name: ClassVar[str] = "question answering"
    outputs: ClassVar[int] = 2

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse also a tokenizer that does not give the characters of its tokens."""
        super().check(model, tokenizer)
        if not tokenizer.is_fast:
            raise TeacherError(
                f"{self.title} needs the characters of each token, which a {type(tokenizer).__name__} "
                "does not give. Save a fast tokenizer (tokenizer.json) beside the model."
            )

    def load(self, places: DataPlaces) -> Rows:
        """Return rows with `question`, `context`, right `answers` and the characters where they start."""
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
        has `row`, `offsets` and `null` (see `spans.Window`).
        """
        return {split: self._windows(dataset, split, tokenizer, max_length) for split, dataset in rows.items()}

    def score(self, rows: Rows, features: Rows, split: str, outputs: tuple[np.ndarray, ...]) -> Scores:
        """Return F1 and exact match of logits `(windows, tokens)`, two tensors."""
        windows: dict[int, list[Window]] = defaultdict(list)
        columns = (features[split][name] for name in ("row", "offsets", "null"))
        for row, offsets, null, start, end in zip(*columns, *outputs[:2], strict=True):
            windows[row].append(Window(start, end, offsets, null))
        predicted = [
            answer(
                context,
                windows[number],
                n_best=self.n_best,
                max_answer_tokens=self.max_answer_tokens,
                null_threshold=self.null_threshold if self.may_lack_answers else None,
            )
            for number, context in enumerate(rows[split]["context"])
        ]
        return squad_scores(predicted, rows[split]["answers"])

    def _from_files(self, folder: Path) -> Rows:
        return {
            split: Dataset.from_list(list(_official_rows(folder / name)), features=FEATURES)
            for split, name in self.files.items()
        }

    @staticmethod
    def _from_hub(splits: Mapping[str, Dataset]) -> Rows:
        def flat(row: dict[str, Any]) -> dict[str, Any]:
            return {
                "question": row["question"],
                "context": row["context"],
                "answers": row["answers"]["text"],
                "starts": row["answers"]["answer_start"],
            }

        return {
            split: splits[name].map(
                flat, remove_columns=splits[name].column_names, features=FEATURES, desc="Reading answers"
            )
            for split, name in HUB_SPLITS.items()
        }

    def _check_row(self, row: Mapping[str, Any], split: str) -> None:
        where = f"the question {row['question']!r} of the split {split!r} of {self.name}"
        if not row["answers"] and not self.may_lack_answers:
            raise DataError(f"{where} has no answer. Use squad_v2 for questions that may have none.")
        for text, start in zip(row["answers"], row["starts"], strict=True):
            if row["context"][start : start + len(text)] != text:
                raise DataError(
                    f"{where} has the answer {text!r} at character {start}, where its text has "
                    f"{row['context'][start : start + len(text)]!r}. `answer_start` counts characters, not bytes: "
                    "correct the file."
                )

    def _windows(self, rows: Dataset, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        overlap = max_length // 3
        self._check_questions(rows, tokenizer, max_length - overlap)

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            encoded = tokenizer(
                [question.strip() for question in batch["question"]],
                batch["context"],
                truncation="only_second",
                max_length=max_length,
                stride=overlap,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            of_window = encoded.pop("overflow_to_sample_mapping")
            offsets = [
                [
                    pair if part == 1 else NOT_CONTEXT
                    for pair, part in zip(pairs, encoded.sequence_ids(window), strict=True)
                ]
                for window, pairs in enumerate(encoded.pop("offset_mapping"))
            ]
            nulls = [_null(ids, tokenizer) for ids in encoded["input_ids"]]
            if split != "train":
                return dict(encoded) | {"row": [numbers[row] for row in of_window], "offsets": offsets, "null": nulls}
            targets = [
                target(pairs, null, batch["answers"][row], batch["starts"][row])
                for pairs, null, row in zip(offsets, nulls, of_window, strict=True)
            ]
            return dict(encoded) | {
                "start_positions": [start for start, _ in targets],
                "end_positions": [end for _, end in targets],
            }

        return rows.map(
            encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc=f"Tokenizing {self.name}"
        )

    def _check_questions(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, room: int) -> None:
        questions = [question.strip() for question in rows["question"]]
        longest = max(len(ids) for ids in tokenizer(questions, [""] * len(questions))["input_ids"])
        if longest >= room:
            raise DataError(
                f"a question of {self.name} is {longest} tokens long with its special tokens; beside it and the "
                f"overlap of windows nothing of {room} tokens is left for the text. Give a larger max_length=, up "
                "to what the model has positions for."
            )


def target(
    offsets: Sequence[Sequence[int]], null: int, answers: Sequence[str], starts: Sequence[int]
) -> tuple[int, int]:
    """Return the first and the last token of the first answer in a window, `(null, null)` if it is not wholly there."""
    if not answers:
        return null, null
    text = answers[0]
    begin = starts[0] + len(text) - len(text.lstrip())
    last = begin + len(text.strip()) - 1
    first_tokens = [place for place, (a, b) in enumerate(offsets) if a <= begin < b]
    last_tokens = [place for place, (a, b) in enumerate(offsets) if a <= last < b]
    if not first_tokens or not last_tokens:
        return null, null
    return first_tokens[0], last_tokens[-1]  # one character may be several tokens


def _null(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0


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
                        "answers": [each["text"] for each in question["answers"]],
                        "starts": [each["answer_start"] for each in question["answers"]],
                    }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a file in SQuAD's layout ({type(error).__name__}: {error}). Expected: an object with "
            "`data`, a list of articles with `paragraphs`, each with `context` and `qas`."
        ) from error
