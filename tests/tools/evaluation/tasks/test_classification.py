"""Classes and scores: rows from files and the Hub, tokens, labels, scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import pytest
import toys
from datasets import Dataset, DatasetDict

from wid_hf.errors import ConfigError, DataError
from wid_hf.tools.evaluation.tasks import TASKS, DataPlaces, find_tasks
from wid_hf.tools.evaluation.tasks.classification import Classification

PAIRS = [{"text_a": "one two", "text_b": "three", "label": 1}, {"text_a": "four", "text_b": "five six", "label": 0}]
SINGLE = [{"text": "one two three", "label": 0}, {"text": "four", "label": 1}]


def task(name: str) -> Classification:
    found = TASKS[name]
    assert isinstance(found, Classification)
    return found


def write(folder: Path, name: str, splits: dict[str, list[dict]], suffix: str = ".jsonl") -> DataPlaces:
    (folder / name).mkdir(parents=True)
    for split, rows in splits.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name / (split + suffix)).write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    return DataPlaces(folder)


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no task 'sst3'. Known: cola, sst2"):
        find_tasks(["sst2", "sst3"])
    with pytest.raises(ConfigError, match="no task was named"):
        find_tasks([])
    assert [found.name for found in find_tasks(["rte", "cola", "rte"])] == ["rte", "cola"]


def test_files_give_the_splits_that_are_there(tmp_path: Path) -> None:
    rows = task("mrpc").load(write(tmp_path, "glue/mrpc", {"train": PAIRS, "dev": PAIRS[:1]}))
    assert {split: len(dataset) for split, dataset in rows.items()} == {"train": 2, "dev": 1}
    assert rows["train"].to_list() == PAIRS


def test_the_classes_of_reactions_are_counted_from_one_and_read_from_their_own_keys(tmp_path: Path) -> None:
    reactions = [{"rxn": "one two", "class": 10}, {"rxn": "three", "class": 1}]
    places = write(tmp_path, "uspto50k", {"train": reactions, "valid": reactions, "test": reactions}, ".jsonl.gz")
    rows = task("reactions").load(places)
    features = task("reactions").features(rows, toys.word_tokenizer(), 16)
    assert features["test"]["labels"][:] == [9, 0]
    assert task("reactions").head_settings["num_labels"] == 10


@pytest.mark.parametrize(
    ("name", "columns", "splits"),
    [
        ("cola", {"sentence": "text"}, {"train": "train", "dev": "validation"}),
        ("qnli", {"question": "text_a", "sentence": "text_b"}, {"train": "train", "dev": "validation"}),
        (
            "mnli",
            {"premise": "text_a", "hypothesis": "text_b"},
            {"train": "train", "dev": "validation_matched", "mismatched": "validation_mismatched"},
        ),
    ],
)
def test_rows_of_the_hub_get_our_names_and_secret_labels_are_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, columns: dict[str, str], splits: dict[str, str]
) -> None:
    asked = []

    def load_dataset(*words: str) -> DatasetDict:
        asked.append(words)
        rows = Dataset.from_dict({there: ["one", "two"] for there in columns} | {"label": [0, 1], "idx": [0, 1]})
        secret = Dataset.from_dict({there: ["one"] for there in columns} | {"label": [-1], "idx": [0]})
        return DatasetDict({there: rows for there in splits.values()} | {"test": secret})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = task(name).load(DataPlaces())
    assert asked == [("nyu-mll/glue", name)]
    assert set(rows) == set(splits)
    assert set(rows["dev"].column_names) == {*columns.values(), "label"}


def test_a_folder_without_the_task_is_passed_over_for_the_hub_and_both_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*words: str) -> NoReturn:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"has no folder glue/rte, and nyu-mll/glue \(rte\) cannot .* no network.*folder="
    ):
        task("rte").load(DataPlaces(tmp_path))
    with pytest.raises(DataError, match="no data folder with uspto50k was named, and this task is not on the Hub"):
        task("reactions").load(DataPlaces())
    with pytest.raises(DataError, match="there is no data folder"):
        task("rte").load(DataPlaces(tmp_path / "absent"))


def test_a_folder_without_a_dev_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no file dev\.jsonl"):
        task("cola").load(write(tmp_path, "glue/cola", {"train": SINGLE}))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "one", "label": 2}, r"label 2. Legal: 0, 1"),
        ({"text": "one", "label": "1"}, r"train\.jsonl .*(several kinds|number to string).*"),
        ({"text": "one", "label": None}, r"row 3 of .*train\.jsonl has None as 'label'. Expected: a number"),
        ({"sentence": "one", "label": 1}, r"row 3 of .*train\.jsonl has None as 'text'. Expected: a string"),
    ],
)
def test_a_row_that_is_none_of_the_task_is_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        task("cola").load(write(tmp_path, "glue/cola", {"train": [*SINGLE, row], "dev": SINGLE}))


def test_fewer_examples_are_the_same_in_every_run_and_not_the_first(tmp_path: Path) -> None:
    rows = [{"text": f"one {number}", "label": number % 2} for number in range(50)]
    folder = write(tmp_path, "glue/sst2", {"train": rows, "dev": rows}).folder
    some = [task("sst2").load(DataPlaces(folder, train_examples=9, eval_examples=5)) for _ in range(2)]
    assert (len(some[0]["train"]), len(some[0]["dev"])) == (9, 5)
    assert some[0]["train"].to_list() == some[1]["train"].to_list() != rows[:9]


def test_tokens_are_cut_and_unknown_text_is_refused(tmp_path: Path) -> None:
    rows = task("cola").load(write(tmp_path, "glue/cola", {"train": SINGLE, "dev": SINGLE}))
    features = task("cola").features(rows, toys.word_tokenizer(), 4)
    assert features["train"]["input_ids"][:] == [[2, 5, 6, 3], [2, 8, 3]]
    alien = {split: dataset.map(lambda row: {"text": "zwei drei"}) for split, dataset in rows.items()}
    with pytest.raises(DataError, match="only special or unknown tokens"):
        task("cola").features(alien, toys.word_tokenizer(), 4)


def test_classes_are_the_largest_logit_and_scores_the_only_one() -> None:
    features = {"dev": Dataset.from_dict({"labels": [1, 1, 0, 0]})}
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert task("mrpc").score({}, features, "dev", (logits,)) == {"f1": 0.5, "accuracy": 0.5}
    features = {"dev": Dataset.from_dict({"labels": [0.0, 1.0, 5.0]})}
    scores = task("stsb").score({}, features, "dev", (np.array([[0.0], [2.0], [3.0]]),))
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(3**0.5 / 2)  # 7 / (14 * 14/3)^0.5
