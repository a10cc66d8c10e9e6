"""Encoders without a head: a student follows its teacher's last hidden states and the cosines between rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..adapter.tuner import WidModel
from ..coupling.trace import quiet_forward
from ..errors import TeacherError
from ..inputs import Batch, Inputs
from ..planning.example_inputs import example_inputs
from ..rows.roles import Role
from ..scores import embed, sentence_score
from ..training.losses.following import followed
from .objective import Figures, Objective


class Features(Objective):
    """Return hidden states that others use. The figures compare mean-pooled vectors of rows with the teacher's.

    Args:
        teacher: in evaluation mode.
        inputs: make its batches.

    Raises:
        TeacherError: it returns no hidden states, or not one for each position.
    """

    name = "features"
    title = "headless encoders"
    one = "a headless encoder"
    has_logits = False

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, inputs)
        with quiet_forward(teacher):
            states = getattr(teacher(**example_inputs(teacher)), "last_hidden_state", None)
        if states is None or states.ndim != 3:
            shape = "none" if states is None else f"one of {states.ndim} axes"
            raise TeacherError(
                f"A student follows a last_hidden_state of (rows, positions, width), and {type(teacher).__name__} "
                f"returns {shape}. Use get_wid_model and a loss of your own for it."
            )

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

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return the correlation of cosines with the teacher's, and how often the nearest row is the same."""
        if wanted is None:
            return {}
        agreement = sentence_score(wanted, embed(model, batches))
        return {"cosine_correlation": agreement.cosine_correlation, "top1_agreement": agreement.top1_agreement}

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return `following_loss` of one batch."""
        return followed(wid, student, teacher, inputs)
