"""Figures of answers, from scores made by hand, and rows that cannot be used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from imitations import teacher_of
from torch import Tensor, nn
from toys import word_tokenizer
from transformers import BertForQuestionAnswering

from wid_hf.inputs import TextInputs
from wid_hf.objectives.question_answering import QuestionAnswering

# With windows of 9 tokens the first text has two windows, which share the last three words of the first.
ROWS: dict[str, list[Any]] = {
    "question": ["one", "one", "one"],
    "context": ["two three four five six seven eight", "nine ten", "ten nine"],
}
ANSWERS = [
    {"text": ["seven eight", "eight"], "answer_start": [24, 30]},
    {"text": ["nine"], "answer_start": [0]},
    {"text": [], "answer_start": []},
]
NINE, TEN, SEVEN, EIGHT = 13, 14, 11, 12  # tokens


class Says(nn.Module):
    """A model that is sure of the first and the last token of the answers that it is given, else of the null token."""

    def __init__(self, *spans: tuple[int, int]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.spans = spans

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Any:
        start, end = (torch.zeros_like(input_ids, dtype=torch.float) for _ in range(2))
        for row, ids in enumerate(input_ids.tolist()):
            first, last = next(
                ((ids.index(a, 3), ids.index(b, 3)) for a, b in self.spans if a in ids[3:] and b in ids[3:]), (0, 0)
            )
            start[row, first] = end[row, last] = 9.0
            start[row, attention_mask[row] == 0] = end[row, attention_mask[row] == 0] = 99.0  # of no consequence
        return SimpleNamespace(start_logits=start, end_logits=end)


def objective(teacher: Any = None) -> QuestionAnswering:
    made = QuestionAnswering(teacher_of(BertForQuestionAnswering), TextInputs(word_tokenizer()))
    made.teacher = teacher or made.teacher
    return made


def scored(made: QuestionAnswering, **more: list[Any]) -> list[Any]:
    return made.scored(made.features(Dataset.from_dict({**ROWS, **more}), 9), 3, 0)  # a question lies across batches


def test_figures_are_those_of_answers_found_in_all_windows_of_a_question() -> None:
    made = objective(Says((SEVEN, EIGHT), (NINE, NINE), (TEN, TEN)))
    batches = scored(made, answers=ANSWERS)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 1]
    wanted = made.wanted(batches)
    # "seven eight", "nine" and, wrongly, "nine" again, where there is no answer
    assert made.score(made.teacher, batches, wanted) == pytest.approx(
        {"exact_match": 2 / 3, "f1": 2 / 3, "agreement": 1, "divergence": 0}
    )
    # "eight" is one of the right answers; no answer to the others
    other = made.score(Says((EIGHT, EIGHT)), batches, wanted)
    assert other["exact_match"] == other["f1"] == pytest.approx(2 / 3)
    assert other["agreement"] == 0
    # "seven" of "seven eight": half of the words, F1 2/3
    partly = made.score(Says((SEVEN, SEVEN), (NINE, NINE)), batches, wanted)
    assert partly["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert partly["exact_match"] == pytest.approx(1 / 3)
    assert partly["agreement"] == pytest.approx(2 / 3)


def test_divergence_is_the_mean_over_windows_and_ends() -> None:
    made = objective(Says((SEVEN, EIGHT), (NINE, NINE), (TEN, TEN)))
    batches = scored(made)
    found = made.score(Says((SEVEN, EIGHT), (NINE, TEN), (TEN, NINE)), batches, made.wanted(batches))
    # Two short windows of 6 tokens differ in one end each: one of 6 scores is 9 at another place.
    logits = torch.tensor([9.0, 0, 0, 0, 0, 0]).log_softmax(0)
    swapped = logits[[1, 0, 2, 3, 4, 5]]
    of_end = float((logits.exp() * (logits - swapped)).sum())
    assert found["divergence"] == pytest.approx(2 * of_end / 2 / 4, rel=1e-4)
    assert found.keys() == {"agreement", "divergence"}


def test_no_answer_is_only_given_where_a_question_may_have_none() -> None:
    """All scores of a text are equal where a model is silent: then its first word is the best span."""
    answered = [*ANSWERS[:2], {"text": ["ten"], "answer_start": [0]}]
    for answers, right in ((answered, 2 / 3), (ANSWERS, 1 / 3)):
        made = objective(Says((SEVEN, EIGHT), (NINE, NINE), (TEN, TEN)))
        batches = scored(made, answers=answers)
        assert made.score(Says(), batches, made.wanted(batches))["exact_match"] == pytest.approx(right)


def test_training_rows_point_at_answers_and_models_get_nothing_else() -> None:
    made = objective()
    features = made.features(Dataset.from_dict({**ROWS, "answers": ANSWERS}), 9)
    batch = made.collator([dict(row) for row in features])
    assert batch.keys() == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert batch["start_positions"].tolist() == [0, 6, 3, 0]
    assert batch["end_positions"].tolist() == [0, 7, 3, 0]
    made.teacher(**batch).loss.backward()


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"text": ["two"], "answer_start": [0]}, None),
        ({"text": [], "answer_start": []}, None),
        ({"text": ["two", "four"], "answer_start": [0, 9]}, "an answer does not stand at its answer_start"),
        ({"text": ["two", "four"], "answer_start": [0]}, "there is not one answer_start for each answer"),
    ],
)
def test_rows_whose_answers_do_not_stand_where_they_say_are_told(answers: Any, why: str | None) -> None:
    row = {"question": "one", "context": "two three four"}
    assert objective().why_unusable(row) is None
    found = objective().why_unusable({**row, "answers": answers})
    assert found == why or found.startswith(why)
