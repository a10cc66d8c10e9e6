"""Answers that are spans of texts: a student learns where its teacher sees their ends, and answers if given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..inputs import Batch, Columns, Inputs, batches
from ..inputs.windows import PLACES, WindowInputs, misplaced, positions, questions_of
from ..rows.roles import ANSWERS, CONTEXT, Role
from ..scores.spans import Window, answers, squad_scores
from .divergences import span_divergence
from .logits import outputs_of
from .objective import Figures, Objective

BESIDE = (*PLACES, CONTEXT.name, ANSWERS.name)  # what windows have for figures; no model takes it


class QuestionAnswering(Objective):
    """Give each token of a question's text scores of being the first and the last one of the answer.

    Texts are read in windows of `max_length` tokens that overlap by a third. In a window that does not hold the answer,
    and where there is none, both ends are the first token.
    """

    name = "question-answering"
    title = "models that answer questions by a span of a text"
    one = "a model that answers questions by a span of a text"
    has_logits = False
    reduction = "rows"
    takes_labels = True

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, WindowInputs(inputs.processor))

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' question answerers."""
        return type(teacher).__name__ in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()

    @property
    def target(self) -> Role:
        """The right answers and the characters at which they start; none for a question that the text leaves open."""
        return ANSWERS

    def why_unusable(self, row: Mapping[str, Any]) -> str | None:
        """Return a reason if a row has an answer that does not stand in the text where it says."""
        if ANSWERS.name not in row:
            return None
        given = row[ANSWERS.name]
        if len(given["text"]) != len(given["answer_start"]):
            return "there is not one answer_start for each answer"
        wrong = misplaced(row[CONTEXT.name], given) is not None
        return "an answer does not stand at its answer_start, which counts characters" if wrong else None

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads what models take."""
        return self._collate

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return windows and, if there are answers, their first and last tokens; more windows than rows.

        Raises:
            DataError: nothing can be read, or a question leaves no room for its text.
        """
        return self.inputs.features(rows, max_length, _beside)

    def scored(self, features: Dataset, batch_size: int, seed: int) -> list[Batch]:
        """Return the batches on which all models are scored, with what figures need beside the tensors."""

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {**self._collate(rows), **{name: [row[name] for row in rows] for name in BESIDE if name in rows[0]}}

        return [*batches(features, collate, batch_size)]

    def wanted(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the teacher's scores of each batch `(windows, tokens, 2)`."""
        return _scores(self.teacher, batches)

    def score(self, model: Any, batches: Sequence[Batch], wanted: list[Tensor] | None) -> Figures:
        """Return F1 and exact match of answers, if there are some, the agreement with the teacher and the divergence.

        Agreement is the share of questions that get the same text as from the teacher; the divergence is in nats, the
        mean over windows and both ends. "No answer" can be given unless all questions have one.
        """
        found = _scores(model, batches)
        right = [text for batch in batches for text in _of_questions(batch, ANSWERS.name)]
        always = all(map(any, right)) and bool(right)
        mine = _answers(batches, found, always)
        own = squad_scores(mine, right) if right else {}
        if wanted is None:
            return own
        theirs = _answers(batches, wanted, always)
        divergences = [
            span_divergence(a, b, batch["attention_mask"].bool())
            for a, b, batch in zip(found, wanted, batches, strict=True)
        ]
        return own | {
            "agreement": sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine),
            "divergence": float(torch.cat(divergences).mean()),
        }

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over windows."""
        return span_divergence(ends(student), ends(teacher), inputs["attention_mask"].bool()).mean()

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self.inputs.collator([{k: v for k, v in row.items() if k not in BESIDE} for row in rows])


def ends(output: Any) -> Tensor:
    """Return the scores of both ends `(b, s, 2)` in the output of a model."""
    return torch.stack([output.start_logits, output.end_logits], -1)


def _scores(model: Any, batches: Sequence[Batch]) -> list[Tensor]:
    return [ends(output).float().cpu() for output in outputs_of(model, batches)]


def _beside(columns: Columns, made: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the text of each window's question and, if there are some, the right answers and their tokens."""
    questions = questions_of(made["window"])
    texts = {CONTEXT.name: [columns[CONTEXT.name][question] for question in questions]}
    if ANSWERS.name not in columns:
        return texts
    # An empty list would have no type if it came first; no answer is the empty one.
    right = [columns[ANSWERS.name][question]["text"] or [""] for question in questions]
    return {**texts, ANSWERS.name: right, **positions(columns, made)}


def _of_questions(batch: Mapping[str, Any], name: str) -> list[Any]:
    """Return what the questions that begin in a batch have under `name`; nothing if it is not there."""
    return [value for value, window in zip(batch.get(name, ()), batch["window"], strict=False) if window == 0]


def _answers(batches: Sequence[Mapping[str, Any]], scores: Sequence[Tensor], always: bool) -> list[str]:
    """Return the answer to each question.

    Args:
        batches: windows, a question's after those of the one before.
        scores: of both ends, `(windows, tokens, 2)` for each batch.
        always: whether each question has an answer.
    """
    windows = [
        Window(start, end, offsets, null)
        for batch, each in zip(batches, scores, strict=True)
        for (start, end), offsets, null in zip(each.mT.numpy(), batch["offsets"], batch["null"], strict=True)
    ]
    return answers(
        [text for batch in batches for text in _of_questions(batch, CONTEXT.name)],
        windows,
        questions_of([number for batch in batches for number in batch["window"]]),
        null_threshold=None if always else 0.0,
    )
