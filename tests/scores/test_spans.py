"""SQuAD's figures and the choice of a span, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from wid_hf.inputs.windows import NOT_CONTEXT
from wid_hf.scores.spans import (
    Window,
    answer,
    best_span,
    exact_match,
    normalized,
    null_score,
    squad_scores,
    token_f1,
)

TEXT = "one two three four"
WORDS = [NOT_CONTEXT, (0, 3), (4, 7), (8, 13), (14, 18), NOT_CONTEXT]  # [CLS], four words, [SEP]


def window(start: list[float], end: list[float], offsets: Sequence[tuple[int, int]] = WORDS) -> Window:
    return Window(np.array(start, np.float32), np.array(end, np.float32), offsets, null=0)


def chosen(*windows: Window, null_threshold: float | None = None, n_best: int = 20, longest: int = 30) -> str:
    return answer(TEXT, windows, n_best=n_best, max_answer_tokens=longest, null_threshold=null_threshold)


def test_case_articles_punctuation_and_blanks_do_not_count() -> None:
    assert normalized("The  Eiffel-Tower,\n a tower.") == "eiffeltower tower"
    assert normalized("another theatre") == "another theatre"
    assert exact_match("the Tower!", "a tower") == 1.0
    assert exact_match("tower", "towers") == 0.0


def test_multi_byte_text_is_compared_letter_by_letter() -> None:
    assert exact_match("der Zürichsee", "Der ZÜRICHSEE.") == 1.0
    assert token_f1("北京 大学", "大学 上海") == 0.5
    assert exact_match("北京", "南京") == 0.0


def test_f1_is_that_of_words_with_repetition() -> None:
    # 2 words in common of 3 predicted and 4 right: precision 2/3, recall 1/2
    assert token_f1("big black dog", "old big black cat") == pytest.approx(4 / 7)
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert token_f1("cat", "dog") == 0.0


def test_f1_against_nothing_is_whether_both_are_nothing() -> None:
    assert token_f1("", "") == 1.0
    assert token_f1("the", "") == 1.0  # an article is no word
    assert token_f1("dog", "") == 0.0
    assert token_f1("", "dog") == 0.0


def test_the_best_of_several_right_answers_counts_and_questions_are_averaged() -> None:
    predicted = ["black dog", "", "cat"]
    right = [["a dog", "the black dog"], [], ["the dog", ""]]
    assert squad_scores(predicted, right) == {"f1": pytest.approx(2 / 3), "exact_match": pytest.approx(2 / 3)}
    assert squad_scores(["black dog"], [["dog"]]) == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}


def test_the_pair_with_the_largest_sum_wins_not_the_best_start_alone() -> None:
    # best start "four" can only end at "four": 5 + 0; "two" to "three" has 4 + 3
    assert chosen(window([0, 0, 4, 0, 5, 0], [0, 0, 0, 3, 0, 0])) == "two three"


def test_a_span_that_runs_backwards_or_is_too_long_is_not_chosen() -> None:
    scores = window([0, 9, 1, 0, 0, 0], [0, 0, 0, 2, 9, 0])
    assert chosen(scores) == TEXT
    assert chosen(scores, longest=3) == "one two three"
    assert chosen(window([0, 0, 0, 0, 9, 0], [0, 5, 0, 0, 1, 0])) == "four"


def test_special_tokens_and_the_question_are_never_part_of_an_answer() -> None:
    assert chosen(window([99, 0, 1, 0, 0, 99], [99, 0, 1, 0, 0, 99])) == "two"


def test_padding_beyond_the_tokens_of_a_window_is_not_read() -> None:
    assert chosen(window([0, 0, 1, 0, 0, 0, 99, 99], [0, 0, 1, 0, 0, 0, 99, 99])) == "two"


def test_the_best_of_overlapping_windows_wins() -> None:
    left = window([0, 0, 2, 0], [0, 0, 2, 0], [*WORDS[:3], NOT_CONTEXT])
    right = window([0, 0, 3, 0], [0, 0, 2, 0], [NOT_CONTEXT, *WORDS[2:4], NOT_CONTEXT])
    assert chosen(left) == "two"
    assert chosen(left, right) == chosen(right, left) == "three"


def test_n_best_bounds_what_is_paired() -> None:
    scores = window([0, 0, 4, 0, 5, 0], [0, 0, 0, 3, 1, 0])
    assert chosen(scores, n_best=1) == ""  # the best start lies behind the best end, and nothing else is looked at
    assert chosen(scores, n_best=2) == "two three"


def test_no_answer_is_given_only_beyond_the_threshold_and_in_no_window_less() -> None:
    sure = window([5, 0, 2, 0, 0, 0], [5, 0, 2, 0, 0, 0])  # null 10, span 4
    assert chosen(sure) == "two"  # every question has an answer
    assert chosen(sure, null_threshold=0.0) == ""
    assert chosen(sure, null_threshold=6.0) == "two"
    found = window([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])  # here the answer is not said to be absent
    assert null_score([sure, found]) == 2.0
    assert chosen(sure, found, null_threshold=0.0) == "two"


def test_without_a_token_of_the_text_there_is_no_answer() -> None:
    assert best_span([window([1, 1], [1, 1], [NOT_CONTEXT, NOT_CONTEXT])], 20, 30) is None
    assert chosen(window([1, 1], [1, 1], [NOT_CONTEXT, NOT_CONTEXT])) == ""
