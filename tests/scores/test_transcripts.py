"""Edits that make one sequence another, and their share."""

from __future__ import annotations

import random
from functools import cache

import pytest

from wid_hf.scores.transcripts import as_said, edit_distance, error_rate, word_error_rate


def by_definition(found: str, right: str) -> int:
    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (found[i - 1] != right[j - 1]))

    return edits(len(found), len(right))


def test_the_edit_distance_is_levenshteins() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    chance = random.Random(0)
    for _ in range(50):
        one, other = ("".join(chance.choices("abc", k=chance.randint(0, 9))) for _ in range(2))
        assert edit_distance(one, other) == by_definition(one, other)


def test_rates_are_edits_per_item_of_what_is_right() -> None:
    found, right = ["the cat sat", "on mat"], ["the cat sat", "on the mat"]
    assert word_error_rate(found, right) == pytest.approx(1 / 6)
    assert error_rate(found, right) == pytest.approx(4 / 21)
    assert word_error_rate(["a b c"], ["a"]) == 2
    assert word_error_rate([""], [""]) == 0


def test_case_and_punctuation_are_not_said() -> None:
    assert as_said(' It\'s  3,5 -- "Yes"; No_one! ') == "it's 3 5 yes no one"
    assert as_said("Zürich, 北京.") == "zürich 北京"
