"""Labels of rows become the numbers that a model's loss takes, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig

from wid_hf.errors import DataError, WidWarning
from wid_hf.objectives.labels import Labels, names_of

MOODS = {"label2id": {"glad": 0, "sad": 1, "calm": 2}, "id2label": {0: "glad", 1: "sad", 2: "calm"}}
SEVERAL = {**MOODS, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("config", "given", "wanted"),
    [
        (MOODS, "sad", 1), (MOODS, 2, 2), (MOODS, "2", 2), (MOODS, 1.0, 1), (MOODS, True, 1),
        (SEVERAL, ["calm", 0], [1.0, 0.0, 1.0]), (SEVERAL, "sad", [0.0, 1.0, 0.0]),
        (SEVERAL, [0, 1, 1], [0.0, 1.0, 1.0]), (SEVERAL, [], [0.0, 0.0, 0.0]),
        ({"num_labels": 1}, 3, 3.0), ({"num_labels": 1}, "0.5", 0.5),
        ({"num_labels": 2, "problem_type": "regression"}, [1, 2.5], [1.0, 2.5]),
    ],
)  # fmt: skip
def test_names_and_numbers_are_both_understood(config: dict[str, Any], given: Any, wanted: Any) -> None:
    found = Labels(BertConfig(**config)).target(given)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        (MOODS, "angry", r"'angry' is none of the model's 3. Legal: 0 to 2, or glad, sad, calm"),
        (MOODS, 3, "label 3 is none"), (MOODS, -1, "label -1 is none"), (MOODS, 0.5, "label 0.5 is none"),
        (MOODS, None, "None is none"), (SEVERAL, ["angry"], "'angry' is none"),
        ({"num_labels": 1}, "much", "'much' is not a number"),
        ({"num_labels": 1}, "nan", "'nan' is not a number"), ({"num_labels": 1}, float("inf"), "inf is not a number"),
        ({"num_labels": 2, "problem_type": "regression"}, "12", "'12' is not a list of 2 numbers"),
        ({"num_labels": 2, "problem_type": "regression"}, [1.0], r"\[1.0\] is not a list of 2 numbers"),
        ({"num_labels": 2, "problem_type": "regression"}, 1.0, "1.0 is not a list of 2 numbers"),
    ],
)  # fmt: skip
def test_others_are_refused_with_what_is_legal(config: dict[str, Any], given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Labels(BertConfig(**config)).target(given)


def test_numbers_of_a_dataset_with_names_are_those_names() -> None:
    """A folder of images numbers its classes in the order of the alphabet, whatever the teacher's order is."""
    one, several = ClassLabel(names=["calm", "glad", "sad"]), List(ClassLabel(names=["x", "y"]))
    rows = Dataset.from_dict(
        {"label": [0, 2], "tags": [[0], [1]], "text": ["a", "b"]},
        features=Features({"label": one, "tags": several, "text": Value("string")}),
    )
    assert names_of(rows, "label") == ["calm", "glad", "sad"]
    assert (names_of(rows, "tags"), names_of(rows, "text"), names_of(rows, "nothing")) == (["x", "y"], None, None)
    labels = Labels(BertConfig(**MOODS), names_of(rows, "label"))
    assert [labels.target(value) for value in rows["label"]] == [2, 1]


def test_other_names_stand_for_numbers_and_a_part_of_them_is_refused() -> None:
    with pytest.warns(WidWarning, match="taken by number: bad as glad, good as sad, odd as calm"):
        others = Labels(BertConfig(**MOODS), ["bad", "good", "odd"])
    assert others.target(2) == 2
    assert Labels(BertConfig(num_labels=2), ["bad", "good"]).target(1) == 1
    with pytest.raises(DataError, match=r"none of the model's: odd\. Legal: 0 to 2, or glad, sad, calm\."):
        Labels(BertConfig(**MOODS), ["calm", "glad", "odd"])
