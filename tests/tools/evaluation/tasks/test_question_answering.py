"""SQuAD from a small file made by hand: windows that overlap, no answers, and text of several bytes a letter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, LlamaConfig, PreTrainedTokenizerFast

from wid_hf.errors import DataError, TeacherError
from wid_hf.inputs.windows import questions_of
from wid_hf.tools.evaluation.tasks import TASKS, DataPlaces
from wid_hf.tools.evaluation.tasks.question_answering import QuestionAnswering

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LENGTH = 48  # bytes, of which 16 overlap: no answer is longer

CITY = "Zürich liegt am Zürichsee. 🏔️ Die Einwohner sagen «Züri». 北京 ist weit weg, 10 000 Kilometer, und größer."
PLAIN = "The tower is 330 metres tall, about the same height as an 81-storey building."
QUESTIONS = [  # context, question, right answers
    (CITY, "Wo liegt es?", ["am Zürichsee", "Zürichsee"]),
    (CITY, "Was sagt man?", ["Züri"]),
    (CITY, "Was ist da?", ["🏔️"]),
    (CITY, "Wie weit?", ["10 000 Kilometer"]),
    (CITY, "Wer?", []),
    (PLAIN, "How tall?", ["330 metres"]),
    (PLAIN, "Like what?", ["81-storey"]),
    (PLAIN, "Who built it?", []),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte: a letter is up to four tokens with the same place."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    bytewise = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="[UNK]"))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, **dict(zip(names, SPECIAL, strict=True)))


def first_place(context: str, text: str) -> int:
    return context.index("Züri»") if text == "Züri" else context.index(text)


def official(questions: Sequence[tuple[str, str, list[str]]] = QUESTIONS) -> dict[str, Any]:
    paragraphs = {}
    for number, (context, question, answers) in enumerate(questions):
        places = [{"text": text, "answer_start": first_place(context, text)} for text in answers]
        paragraphs.setdefault(context, []).append(
            {"id": str(number), "question": question, "answers": places, "is_impossible": not answers}
        )
    return {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": c, "qas": qas} for c, qas in paragraphs.items()]}],
    }


def write(folder: Path, version: str, content: Any) -> DataPlaces:
    (folder / "squad").mkdir()
    for split in ("train", "dev"):
        path = folder / "squad" / f"{split}-v{version}.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return DataPlaces(folder)


def task(name: str = "squad_v2") -> QuestionAnswering:
    found = TASKS[name]
    assert isinstance(found, QuestionAnswering)
    return found


def with_answers() -> list:
    return [row for row in QUESTIONS if row[2]]


def perfect_logits(rows: Dataset, features: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that knows: 9 at both ends of the last right answer, at the null token where it is not."""
    width = max(map(len, features["input_ids"]))
    start, end = (np.full((len(features), width), -100.0, np.float32) for _ in range(2))
    for number, (question, feature) in enumerate(zip(questions_of(features["window"]), features, strict=True)):
        right, offsets = rows[question]["answers"], feature["offsets"]
        start[number, : len(offsets)] = end[number, : len(offsets)] = 0.0
        begin = right["answer_start"][-1] if right["text"] else None
        covering = (
            []
            if begin is None
            else [
                [place for place, (a, b) in enumerate(offsets) if a <= letter < b]
                for letter in range(begin, begin + len(right["text"][-1]))
            ]
        )
        if covering and all(covering):
            start[number, covering[0][0]] = end[number, covering[-1][-1]] = 9.0
        else:
            start[number, feature["null"]] = end[number, feature["null"]] = 9.0
    return start, end


def test_a_file_in_the_official_layout_is_read_question_by_question(tmp_path: Path) -> None:
    rows = task().load(write(tmp_path, "2.0", official()))
    assert set(rows) == {"train", "dev"}
    assert [each["text"] for each in rows["dev"]["answers"]] == [answers for _, _, answers in QUESTIONS]
    assert rows["dev"][3]["answers"]["answer_start"] == [CITY.index("10 000")]
    assert rows["dev"]["context"][0] == CITY


def test_the_dataset_of_the_hub_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = task().load(write(tmp_path, "2.0", official()))["dev"]
    rows = [
        {
            "id": str(number),
            "title": "t",
            "context": context,
            "question": question,
            "answers": {"text": answers, "answer_start": [first_place(context, text) for text in answers]},
        }
        for number, (context, question, answers) in enumerate(QUESTIONS)
    ]
    asked = []

    def load_dataset(*name: str | None) -> DatasetDict:
        asked.append(name)
        return DatasetDict({"train": Dataset.from_list(rows), "validation": Dataset.from_list(rows)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert task().load(DataPlaces())["dev"].to_list() == local.to_list()
    assert asked == [("rajpurkar/squad_v2", None)]


def test_windows_overlap_and_together_hold_every_letter_of_the_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = task().load(write(tmp_path, "2.0", official()))
    features = task().features(rows, tokenizer, LENGTH)["dev"]
    for number, context in enumerate(rows["dev"]["context"]):
        windows = [
            row for row, question in zip(features, questions_of(features["window"]), strict=True) if question == number
        ]
        assert len(windows) > 2
        assert all(len(window["input_ids"]) <= LENGTH for window in windows)
        letters = [{letter for a, b in window["offsets"] for letter in range(a, b)} for window in windows]
        assert set().union(*letters) == set(range(len(context)))
        assert all(one & two for one, two in itertools.pairwise(letters))


def test_a_model_that_is_always_right_scores_1_and_one_that_never_answers_scores_what_has_no_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = task().load(write(tmp_path, "2.0", official()))
    features = task().features(rows, tokenizer, LENGTH)
    right = perfect_logits(rows["dev"], features["dev"])
    assert task().score(rows, features, "dev", right) == {"f1": 1.0, "exact_match": 1.0}
    silent = tuple(np.zeros_like(logits) for logits in right)
    for logits in silent:
        logits[np.arange(len(logits)), features["dev"]["null"][:]] = 9.0
    assert task().score(rows, features, "dev", silent) == {"f1": 0.25, "exact_match": 0.25}


def test_without_no_answer_the_same_logits_always_give_a_span(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = task("squad").load(write(tmp_path, "1.1", official(with_answers())))
    features = task("squad").features(rows, tokenizer, LENGTH)
    right = perfect_logits(rows["dev"], features["dev"])
    for logits in right:
        logits[np.arange(len(logits)), features["dev"]["null"][:]] = 99.0
    assert task("squad").score(rows, features, "dev", right) == {"f1": 1.0, "exact_match": 1.0}


def test_training_windows_point_at_the_answer_or_at_the_null_token(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = task().load(write(tmp_path, "2.0", official()))
    features = task().features(rows, tokenizer, LENGTH)["train"]
    assert set(features.column_names) == {
        "input_ids",
        "attention_mask",
        "start_positions",
        "end_positions",
    }
    pointed = [
        tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]) for row in features
    ]
    answers = {answers[0] for _, _, answers in QUESTIONS if answers}
    whole = {text for text in pointed if "\N{REPLACEMENT CHARACTER}" not in text}  # a window may end inside a letter
    assert whole == answers | {"[CLS]"}
    assert all(row["end_positions"] == 0 for row in features if row["start_positions"] == 0)


def test_an_answer_counted_in_bytes_is_refused(tmp_path: Path) -> None:
    content = official()
    answers = content["data"][0]["paragraphs"][0]["qas"][3]["answers"]
    answers[0]["answer_start"] = len(CITY[: answers[0]["answer_start"]].encode())
    with pytest.raises(DataError, match=r"'Wie weit\?' .* counts characters, not bytes"):
        task().load(write(tmp_path, "2.0", content))


def test_a_question_without_an_answer_is_refused_where_all_must_have_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Wer\?' of the split 'train' of squad has no answer. Use squad_v2"):
        task("squad").load(write(tmp_path, "1.1", official()))


@pytest.mark.parametrize("content", [[], {"data": [{"title": "t"}]}, {"data": [{"paragraphs": [{"qas": [{}]}]}]}])
def test_a_file_of_another_layout_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match=r"train-v2\.0\.json is not a file in SQuAD's layout"):
        task().load(write(tmp_path, "2.0", content))


def test_a_length_that_leaves_no_room_for_the_text_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = task().load(write(tmp_path, "2.0", official()))
    with pytest.raises(DataError, match=r"is 16 tokens long .* larger max_length="):
        task().features(rows, tokenizer, 24)


def test_a_model_without_such_a_head_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = BertForQuestionAnswering(
        BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    )
    task().check(model, tokenizer)
    model.config.__class__ = type("NewConfig", (LlamaConfig,), {})
    with pytest.raises(TeacherError, match="SQuAD v2 needs a head for question answering"):
        task().check(model, tokenizer)
