"""Taggers of tokens: a student learns the teacher's scores of every token, from texts without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..training.losses.counting import mean_of
from .divergences import softmax_divergence
from .logits import logits_of
from .objective import Batch, Figures, Objective


class TokenClassification(Objective):
    """Give each token scores of classes that exclude each other; tokens of padding do not count."""

    name = "token-classification"
    title = "taggers of tokens"
    one = "a tagger of tokens"

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' token classifiers."""
        return type(teacher).__name__ in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's scores `(tokens, classes)`."""
        return token_scores(self.teacher, batches)

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor) -> Figures:
        """Return the agreement with the teacher's most probable class and the divergence in nats, over all tokens.

        Where most tokens have one class, agreement on the others says more: it is of the tokens to which the teacher
        gives another class than its most frequent one; 1 if there are none.
        """
        found = token_scores(model, batches)
        classes, mine = wanted.argmax(-1), found.argmax(-1)
        same = (classes == mine).double()
        others = same[classes != classes.mode().values]
        return {
            "agreement": float(same.mean()),
            "agreement_on_rarer_classes": float(others.mean()) if len(others) else 1.0,
            "divergence": float(softmax_divergence(found, wanted).mean()),
        }

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over tokens that are not padding."""
        attended = inputs["attention_mask"].bool()
        return mean_of(softmax_divergence(student.logits[attended], teacher.logits[attended]))


def token_scores(model: Any, batches: Sequence[Batch]) -> Tensor:
    """Return the scores `(tokens, classes)` of all tokens that are not padding, float32 on the CPU."""
    scored = zip(logits_of(model, batches), batches, strict=True)
    return torch.cat([logits[batch["attention_mask"].bool()] for logits, batch in scored])
