"""Multiple choice: labels by number or text, rows of another number of choices, and figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from imitations import teacher_of
from task_rows import prompts
from toys import word_tokenizer
from transformers import BertForMultipleChoice

from wid_hf.errors import DataError
from wid_hf.inputs import TextInputs
from wid_hf.objectives.multiple_choice import MultipleChoice


def objective(**config: Any) -> MultipleChoice:
    teacher = teacher_of(BertForMultipleChoice, **config)
    with torch.no_grad():
        teacher.classifier.weight.mul_(100)
    return MultipleChoice(teacher, TextInputs(word_tokenizer()))


def labels(given: list[Any]) -> list[int]:
    rows = {"question": ["one"] * len(given), "choices": [["two", "2", "three"]] * len(given), "label": given}
    return objective().features(Dataset.from_dict(rows), 12)["labels"][:]


def test_a_label_is_the_text_of_a_choice_or_its_number() -> None:
    assert labels(["three", "two", "1", "2"]) == [2, 0, 1, 1]  # the text goes first
    assert labels([0, 2]) == labels([0.0, 2.0]) == [0, 2]


@pytest.mark.parametrize("wrong", [["four"], [3], [-1], [0.5], ["3"]])
def test_another_label_is_refused(wrong: list[Any]) -> None:
    with pytest.raises(DataError, match=r"none of 3 choices. Legal: 0 to 2, or the text of a choice"):
        labels(wrong)


def test_the_first_row_says_how_many_choices_all_have() -> None:
    made = objective()
    rows = [{"question": "one", "choices": ["two"] * count} for count in (1, 3, 3, 4)]
    assert [made.why_unusable(row) for row in rows] == [
        "there are fewer than 2 choices", None, None, "there are not 3 choices, as in the first row",
    ]  # fmt: skip


@pytest.mark.parametrize("config", [{}, {"num_labels": 1}])  # a config may count no choices, or one score for each
def test_a_teacher_agrees_with_itself_and_its_accuracy_is_the_share_of_right_choices(config: dict[str, Any]) -> None:
    made = objective(**config)
    batches = made.scored(made.features(Dataset.from_dict(prompts(24)), 12), 8, 0)
    wanted = made.wanted(batches)
    assert wanted.shape == (24, 3)
    found = made.score(made.teacher, batches, wanted)
    right = torch.cat([batch["labels"] for batch in batches])
    share = float((wanted.argmax(-1) == right).float().mean())
    assert found == pytest.approx({"accuracy": share, "agreement": 1, "divergence": 0}, abs=1e-6)
    other = MultipleChoice(teacher_of(BertForMultipleChoice, 1), TextInputs(word_tokenizer())).teacher
    assert made.score(other, batches, wanted)["agreement"] < 1
