"""Classifiers of texts, regressions and rerankers: a student learns the teacher's scores, from texts without labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..errors import WidWarning
from .divergences import sigmoid_divergence, softmax_divergence, squared_error
from .logits import logits_of
from .objective import Batch, Figures, Objective

REGRESSION, SEVERAL_LABELS = "regression", "multi_label_classification"  # values of `config.problem_type`


class SequenceClassification(Objective):
    """Give each text scores: of classes that exclude each other, of labels by themselves, or numbers.

    Which of these follows from `config.problem_type`; without one, a single score is a number, and several are classes.
    """

    name = "sequence-classification"
    title = "classifiers of texts"
    one = "a classifier of texts"
    reduction = "rows"

    def __init__(self, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(teacher, tokenizer)
        config = teacher.config.get_text_config()
        if config.pad_token_id is None:  # a decoder scores the last token before padding
            config.pad_token_id = tokenizer.pad_token_id
            warnings.warn(
                f"The config of this {type(teacher).__name__} names no padding token, by which it finds the last token "
                f"of a text: pad_token_id={tokenizer.pad_token_id} ({tokenizer.pad_token}) is written into the "
                "student's.",
                WidWarning,
                stacklevel=3,
            )

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' sequence classifiers."""
        return type(teacher).__name__ in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()

    @property
    def problem(self) -> str:
        """What scores mean, in the words of `config.problem_type`."""
        config = self.teacher.config
        usual = REGRESSION if config.num_labels == 1 else "single_label_classification"
        return str(getattr(config, "problem_type", None) or usual)

    @property
    def divergence(self) -> Callable[[Tensor, Tensor], Tensor]:
        """How far scores of a student are from the teacher's, row by row."""
        return {REGRESSION: squared_error, SEVERAL_LABELS: sigmoid_divergence}.get(self.problem, softmax_divergence)

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's scores `(texts, labels)`."""
        return torch.cat([*logits_of(self.teacher, batches)])

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor) -> Figures:
        """Return the agreement with the teacher and the divergence from it.

        Agreement is the share of texts with the same most probable class, or of labels that are on or off as the
        teacher's; for numbers it is their correlation, and the divergence the squared error as a share of their
        variance.
        """
        found = torch.cat([*logits_of(model, batches)])
        divergence = float(self.divergence(found, wanted).mean())
        if self.problem == REGRESSION:
            spread = (wanted - wanted.mean(0)).square().sum(-1).mean()
            pair = torch.stack([found.flatten(), wanted.flatten()])
            return {
                "correlation_with_teacher": float(torch.corrcoef(pair)[0, 1]),
                "squared_error_share": divergence / max(float(spread), torch.finfo(wanted.dtype).tiny),
            }
        same = (found > 0) == (wanted > 0) if self.problem == SEVERAL_LABELS else found.argmax(-1) == wanted.argmax(-1)
        return {"agreement": float(same.double().mean()), "divergence": divergence}

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over texts."""
        return self.divergence(student.logits, teacher.logits).mean()
