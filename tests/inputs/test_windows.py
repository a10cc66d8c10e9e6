"""Questions with their texts become windows, and answers tokens in them, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from toys import word_tokenizer
from transformers import BertTokenizerLegacy

from wid_hf.errors import DataError, TeacherError
from wid_hf.inputs.windows import NOT_CONTEXT, WindowInputs, misplaced, positions, questions_of, target

TEXT = "two three four five six seven eight"
NONE = list(NOT_CONTEXT)
PLACES = [[0, 3], [4, 9], [10, 14], [15, 19], [20, 23], [24, 29], [30, 35]]  # of its words
ROWS = {"question": [" one ", "ten"], "context": [TEXT, "six"]}


def windows(**more: list[Any]) -> Dataset:
    rows = Dataset.from_dict({**ROWS, **more})
    return WindowInputs(word_tokenizer()).features(rows, 9, positions if more else None)


def test_windows_of_a_long_text_overlap_by_a_third_and_tell_where_their_tokens_stand() -> None:
    made = windows()
    assert made["input_ids"][:] == [[2, 5, 3, 6, 7, 8, 9, 10, 3], [2, 5, 3, 8, 9, 10, 11, 12, 3], [2, 14, 3, 10, 3]]
    assert made["offsets"][0] == [NONE, NONE, NONE, *PLACES[:5], NONE]
    assert made["offsets"][1] == [NONE, NONE, NONE, *PLACES[2:], NONE]
    assert made["window"][:] == [0, 1, 0]
    assert made["null"][:] == [0, 0, 0]
    assert questions_of(made["window"]) == [0, 0, 1]


def test_an_answer_is_found_in_the_windows_that_hold_all_of_it() -> None:
    first = {"text": ["six seven"], "answer_start": [20]}
    found = windows(answers=[first, {"text": ["six"], "answer_start": [0]}])
    assert found["start_positions"][:] == [0, 5, 3]  # "seven" is not in the first window
    assert found["end_positions"][:] == [0, 6, 3]
    both = windows(answers=[{"text": ["five", "two"], "answer_start": [15, 0]}, {"text": [], "answer_start": []}])
    assert both["start_positions"][:] == both["end_positions"][:] == [6, 4, 0]  # the first answer; none


def test_a_target_takes_all_tokens_of_its_letters_and_none_of_its_blanks() -> None:
    offsets = [(-1, -1), (0, 1), (1, 3), (3, 4), (3, 4), (4, 5), (-1, -1)]
    assert target(offsets, 0, [" bcd "], [0]) == (2, 4)
    assert target(offsets, 0, ["d"], [3]) == (3, 4)
    assert target(offsets, 0, ["def"], [3]) == (0, 0)  # the window ends before the answer does
    assert target(offsets, 0, [], []) == (0, 0)


def test_the_first_answer_that_does_not_stand_where_it_says_is_told() -> None:
    assert misplaced(TEXT, {"text": ["two", "six"], "answer_start": [0, 20]}) is None
    assert misplaced(TEXT, {"text": ["two", "six"], "answer_start": [0, 21]}) == 1
    # Counted from the end, this one would stand there.
    assert misplaced(TEXT, {"text": [TEXT[-5:-2]], "answer_start": [-5]}) == 0
    assert misplaced("Zürich liegt", {"text": ["liegt"], "answer_start": [8]}) == 0  # a count of bytes


def test_windows_are_padded_on_the_right_whatever_the_tokenizer_does() -> None:
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    inputs = WindowInputs(tokenizer)
    made = inputs.features(Dataset.from_dict(ROWS), 9).select_columns(["input_ids", "attention_mask"])
    batch = inputs.collator([made[0], made[2]])
    assert torch.equal(batch["input_ids"][1], torch.tensor([2, 14, 3, 10, 3, 0, 0, 0, 0]))
    assert tokenizer.padding_side == "left"


def test_a_question_that_leaves_no_room_for_its_text_is_refused() -> None:
    rows = Dataset.from_dict({"question": ["one", "one two three four"], "context": [TEXT, TEXT]})
    with pytest.raises(DataError, match=r"'one two three four' is 7 tokens .* nothing of 6 tokens .* max_length="):
        WindowInputs(word_tokenizer()).features(rows, 9)


def test_a_tokenizer_that_does_not_tell_characters_is_refused(tmp_path: Any) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\none\n", encoding="utf-8")
    with pytest.raises(TeacherError, match=r"BertTokenizerLegacy does not give. Save a fast tokenizer"):
        WindowInputs(BertTokenizerLegacy(str(tmp_path / "vocab.txt")))
