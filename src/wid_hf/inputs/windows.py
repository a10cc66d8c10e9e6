"""Questions on texts by a tokenizer, in windows that overlap, so that a long text is read to its end.

Takes questions with their texts, and perhaps where answers stand; gives windows, and the tokens of answers in them.
Called by the objective and by the evaluation task of question answering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ..errors import DataError, TeacherError
from ..rows.roles import ANSWERS, CONTEXT, QUESTION
from .inputs import Columns
from .texts import TextInputs

NOT_CONTEXT = (-1, -1)
OVERLAP = 3  # windows overlap by this part of their length
PLACES = ("window", "offsets", "null")  # what windows have beside the inputs of a model


class WindowInputs(TextInputs):
    """Tokens of a question and of a part of its text, `max_length` in each window, of which a third is in the next.

    Args:
        processor: a working tokenizer.

    Raises:
        TeacherError: the tokenizer does not give the characters of its tokens.
    """

    unit = "questions"
    roles = (QUESTION, CONTEXT)

    def __init__(self, processor: PreTrainedTokenizerBase) -> None:
        if not processor.is_fast:
            raise TeacherError(
                f"Answers are found by the characters of each token, which a {type(processor).__name__} does not give. "
                "Save a fast tokenizer (tokenizer.json) beside the model."
            )
        super().__init__(processor)
        self._tokenizer.padding_side = "right"  # tokens of answers are counted from the left

    def encode(self, columns: Columns, max_length: int) -> dict[str, Any]:
        """Return windows, which are more than the rows: those of one question after those of the one before.

        Beside the model's inputs they have `window`, their number among those of the question; `offsets`, for each
        token its characters in the text, begin and end, or `NOT_CONTEXT`; and `null`, the token that means "not
        answered here".

        Raises:
            DataError: a question is so long that no room is left for the text.
        """
        questions = [question.strip() for question in columns[QUESTION.name]]
        overlap = max_length // OVERLAP
        self._refuse_long(questions, max_length - overlap)
        made = self._tokenizer(
            questions,
            columns[CONTEXT.name],
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, characters = made.pop("overflow_to_sample_mapping"), made.pop("offset_mapping")
        return dict(made) | {
            "window": [number for _, windows in groupby(rows) for number, _ in enumerate(windows)],
            "offsets": [_of_context(pairs, made.sequence_ids(at)) for at, pairs in enumerate(characters)],
            "null": [_null(ids, self._tokenizer) for ids in made["input_ids"]],
        }

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads on the right."""
        return DataCollatorWithPadding(self._tokenizer)

    def _refuse_long(self, questions: list[str], room: int) -> None:
        lengths = [len(ids) for ids in self._tokenizer(questions, [""] * len(questions))["input_ids"]]
        longest = max(lengths)
        if longest >= room:
            raise DataError(
                f"The question {questions[lengths.index(longest)]!r} is {longest} tokens long with its special tokens; "
                f"beside it and the overlap of windows nothing of {room} tokens is left for the text. Give a larger "
                "max_length=, up to what the model has positions for."
            )


def questions_of(windows: Sequence[int]) -> list[int]:
    """Return which question each window belongs to, counted from 0, by its number among those of its question."""
    return [count - 1 for count in accumulate(int(number == 0) for number in windows)]


def positions(columns: Columns, made: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return first and last token of the answer in each window.

    Args:
        columns: rows with answers.
        made: their windows, by `encode`.
    """
    answers = [columns[ANSWERS.name][row] for row in questions_of(made["window"])]
    found = [
        target(offsets, null, each["text"], each["answer_start"])
        for offsets, null, each in zip(made["offsets"], made["null"], answers, strict=True)
    ]
    return {"start_positions": [start for start, _ in found], "end_positions": [end for _, end in found]}


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


def misplaced(context: str, answers: Mapping[str, Any]) -> int | None:
    """Return which of the answers, counted from 0, does not stand in the text where it says; None if all do."""
    places = enumerate(zip(answers["text"], answers["answer_start"], strict=True))
    return next((at for at, (text, start) in places if start < 0 or not context.startswith(text, start)), None)


def _of_context(pairs: Sequence[tuple[int, int]], parts: Sequence[int | None]) -> np.ndarray:
    """Return the characters of each token `(tokens, 2)`, small enough for many windows."""
    places = (pair if part == 1 else NOT_CONTEXT for pair, part in zip(pairs, parts, strict=True))
    return np.array([*places], np.int32)


def _null(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
