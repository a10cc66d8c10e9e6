"""Encoders without a head: a student follows its teacher's last hidden states and the cosines between rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..adapter.tuner import WidModel
from ..inputs import Batch
from ..rows.roles import Role
from ..scores import embed, sentence_score
from ..training.losses.following import followed
from .objective import Figures, Objective


class Features(Objective):
    """Return hidden states that others use. The figures compare mean-pooled vectors of rows with the teacher's."""

    name = "features"
    title = "headless encoders"
    one = "a headless encoder"
    has_logits = False

    @property
    def roles(self) -> tuple[Role, ...]:
        """A text, an image or a sound."""
        return self.inputs.roles[:1]

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the teacher is a base model that does not generate, and has no decoder beside its encoder."""
        reads_targets = "decoder_input_ids" in inspect.signature(teacher.forward).parameters
        return teacher.base_model is teacher and not teacher.can_generate() and not reads_targets

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's vectors `(rows, n)`."""
        return embed(self.teacher, batches)

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor) -> Figures:
        """Return the correlation of cosines with the teacher's, and how often the nearest row is the same."""
        agreement = sentence_score(wanted, embed(model, batches))
        return {"cosine_correlation": agreement.cosine_correlation, "top1_agreement": agreement.top1_agreement}

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return `following_loss` of one batch."""
        return followed(wid, student, teacher, inputs)
