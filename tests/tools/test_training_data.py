"""The rows of a run: columns by role, what is held out, what is told, and streams of which not all is read."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from toys import texts, word_tokenizer
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from wid_hf import DataError, MissingExtraError
from wid_hf.errors import WidWarning
from wid_hf.inputs import TextInputs
from wid_hf.objectives import Objective, find_objective
from wid_hf.tools.recipe import CompressSettings
from wid_hf.tools.training_data import NUMBER, SHUFFLED_BYTES, TrainingData, load_training_data

SETTINGS = CompressSettings(steps=3, batch_size=8, max_length=12, validation_texts=16)
CONFIG = {"vocab_size": 15, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture
def classifier() -> Objective:
    model = BertForSequenceClassification(BertConfig(**CONFIG, num_labels=3))
    return find_objective(model)(model, TextInputs(word_tokenizer()))


@pytest.fixture
def masked_lm() -> Objective:
    model = BertForMaskedLM(BertConfig(**CONFIG))
    return find_objective(model)(model, TextInputs(word_tokenizer()))


def write(path: Path, count: int = 100, **columns: Any) -> str:
    """Rows with a text each, all different, and a label; `columns` are of every row."""
    rows = [{"text": f"{text} {'ten ' * number}", "label": number % 3} for number, text in enumerate(texts(count))]
    path.write_text("".join(json.dumps(row | columns) + "\n" for row in rows))
    return str(path)


def load(source: Any, objective: Objective, samples: int = 8, held_out: Any = None, **settings: Any) -> TrainingData:
    return load_training_data(source, objective, replace(SETTINGS, **settings), samples, held_out)


def tokens(rows: Any) -> set[tuple[int, ...]]:
    return {tuple(row["input_ids"]) for row in rows}


STREAMED = pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])


def test_too_few_rows_are_refused_with_what_became_of_the_others(classifier: Objective) -> None:
    rows = Dataset.from_dict({"text": ["one", "", "two"], "label": [0, 1, None]})
    with pytest.raises(
        DataError, match=r"1 row is too few .* 2 of 3 rows are left out: the text is blank \(1\), there"
    ):
        load(rows, classifier)


@STREAMED
def test_rows_are_divided_without_overlap_and_labels_go_along(
    tmp_path: Path, classifier: Objective, streaming: bool
) -> None:
    data = load(write(tmp_path / "rows.jsonl"), classifier, streaming=streaming, max_length=200)
    assert isinstance(data.train, IterableDataset if streaming else Dataset)
    train = list(data.train)
    assert (len(train), len(data.held_out)) == (84, 16)
    assert len(tokens(train) | tokens(data.held_out)) == 100
    # The row's number is how many "ten" it ends with, and its label that number modulo 3.
    for row in [*train, *data.held_out]:
        assert {"input_ids", "attention_mask", "labels"} <= row.keys()
    assert sorted(row["labels"] for row in [*train, *data.held_out]) == sorted([0, 1, 2] * 33 + [0])


@STREAMED
def test_at_most_one_row_in_five_is_held_out(tmp_path: Path, masked_lm: Objective, streaming: bool) -> None:
    data = load(write(tmp_path / "rows.jsonl", count=11), masked_lm, streaming=streaming)
    assert (len(list(data.train)), len(data.held_out)) == (9, 2)


@STREAMED
def test_separate_validation_rows_come_from_their_own_split(
    tmp_path: Path, masked_lm: Objective, streaming: bool
) -> None:
    write(tmp_path / "train.jsonl", count=20)
    write(tmp_path / "test.jsonl", count=7)
    source = str(tmp_path)
    data = load(source, masked_lm, held_out=source, validation_split="test", streaming=streaming)
    assert (len(list(data.train)), len(data.held_out)) == (20, 7)
    assert list(data.sources) == [source, f"{source} (validation)"]
    with pytest.raises(DataError, match="has no split 'validation'"):
        load(source, masked_lm, held_out=source, streaming=streaming)


def test_held_out_rows_of_a_sorted_table_are_of_all_classes(classifier: Objective) -> None:
    """As a folder of images gives them, a class after the other."""
    rows = Dataset.from_dict({"text": texts(90), "label": [0] * 30 + [1] * 30 + [2] * 30})
    one, same, other = (load(rows, classifier, held_out=rows, validation_texts=30, seed=seed) for seed in (0, 0, 1))
    assert len(one.held_out) == 30 and {0, 1, 2} == {*one.held_out["labels"]}
    assert tokens(one.held_out) == tokens(same.held_out) != tokens(other.held_out)


def test_what_is_read_and_left_out_is_told_and_recorded(tmp_path: Path, classifier: Objective) -> None:
    source = write(tmp_path / "rows.jsonl", count=20, body="one two", mood=None)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"text": "x", "label": 1, "body": " ", "mood": None}) + "\n")
    data = load(source, classifier, column=["body", "label=label"])
    words = "1 of 21 rows is left out: the text is blank (1)."
    assert list(data.words()) == [f"{source}: text from 'body', label from 'label'. {words}"]
    assert data.record() == {
        source: {
            "columns": {"text": "body", "label": "label"},
            "read": 21,
            "dropped": {"the text is blank": 1},
            "words": words,
        }
    }


def test_labels_are_left_out_where_the_user_says_so(tmp_path: Path, classifier: Objective) -> None:
    data = load(write(tmp_path / "rows.jsonl", count=20), classifier, column="label=")
    assert "labels" not in data.train.column_names and "labels" not in data.held_out.column_names


def features_of(rows: Any) -> list[tuple[tuple[int, ...], int | None]]:
    return [(tuple(row["input_ids"]), row.get("labels")) for row in rows]


@STREAMED
@pytest.mark.parametrize("apart", [False, True], ids=["a part held out", "a source of their own"])
def test_labels_that_weigh_nothing_are_those_of_held_out_rows_alone(
    tmp_path: Path, classifier: Objective, streaming: bool, apart: bool
) -> None:
    source = write(tmp_path / "rows.jsonl", count=40)
    held_out = write(tmp_path / "held_out.jsonl", count=10) if apart else None
    options: dict[str, Any] = {"streaming": streaming, "held_out": held_out, "max_length": 60}
    weighed, data = (load(source, classifier, label_weight=weight, **options) for weight in (0.5, 0.0))
    assert features_of(data.held_out) == features_of(weighed.held_out)  # of the same rows
    assert all(label is not None for _, label in features_of(data.held_out))
    assert features_of(data.train) == [(ids, None) for ids, _ in features_of(weighed.train)]


@STREAMED
@pytest.mark.parametrize(
    ("label", "told"),
    [(None, r"1 of 21 rows is left out: there is no label"), (7, "The label 7 is none of the model's")],
)
def test_rows_are_kept_whose_labels_weigh_nothing_and_are_of_no_use(
    tmp_path: Path, classifier: Objective, streaming: bool, label: int | None, told: str
) -> None:
    source = write(tmp_path / "rows.jsonl", count=20)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one two", "label": label}) + "\n")
    with pytest.warns(WidWarning, match=rf"The held-out rows are scored without their labels\. .*{told}"):
        data = load(source, classifier, label_weight=0.0, held_out=source, streaming=streaming, validation_texts=30)
    assert (len(list(data.train)), len(data.held_out)) == (21, 21)
    assert "labels" not in data.held_out.column_names
    assert all(made.dropped == {} for made in data.sources.values())


def test_figures_on_labels_without_their_packages_are_refused_when_rows_are_read(
    tmp_path: Path, classifier: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "rows.jsonl")
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it fails
    with pytest.raises(MissingExtraError, match=r'pip install "wid-hf\[eval\]"'):
        load(source, classifier)
    assert "labels" not in load(source, classifier, column="label=").held_out.column_names


def test_an_untrained_student_needs_only_rows_to_calibrate_on(tmp_path: Path, masked_lm: Objective) -> None:
    assert len(load(write(tmp_path / "rows.jsonl"), masked_lm, steps=0).train) == 8


def test_a_stream_is_shuffled_by_the_seed(tmp_path: Path, masked_lm: Objective) -> None:
    source = write(tmp_path / "rows.jsonl")
    first, again, other = (
        [row["input_ids"] for row in load(source, masked_lm, streaming=True, seed=seed).train] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_of_a_stream_only_what_training_takes_and_the_shuffled_rows_are_read(
    monkeypatch: pytest.MonkeyPatch, masked_lm: Objective, read: list[int]
) -> None:
    monkeypatch.setattr("wid_hf.tools.training_data.SHUFFLED", 50)
    data = load("endless", masked_lm, streaming=True)
    rows = iter(data.train)
    for _ in range(40):
        next(rows)
    assert max(read) < 5000  # features are made of 1000 rows at a time
    assert data.sources["endless"].read == max(read) + 1


def test_fewer_large_rows_are_shuffled(monkeypatch: pytest.MonkeyPatch, masked_lm: Objective, read: list[int]) -> None:
    monkeypatch.setattr("wid_hf.tools.training_data.SHUFFLED_BYTES", 300 * NUMBER)
    sizes = []
    shuffle = IterableDataset.shuffle
    monkeypatch.setattr(
        IterableDataset,
        "shuffle",
        lambda rows, seed, buffer_size: (sizes.append(buffer_size), shuffle(rows, seed, buffer_size=buffer_size))[1],
    )
    load("endless", masked_lm, streaming=True)
    assert 300 // (3 * 12) <= sizes[0] <= 300 // (3 * 5)  # a row has three lists of 5 to 12 numbers
    assert SHUFFLED_BYTES // (3 * 128 * NUMBER) > 10_000
