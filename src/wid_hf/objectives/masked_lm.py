"""Masked language models: they train on their own loss, on texts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..inputs import Batch
from ..rows.roles import TEXT, Role
from ..scores import masked_batches, masked_lm_score
from .divergences import agreement
from .objective import Figures, Objective


class MaskedLM(Objective):
    """Predict masked tokens; 15 % of all are masked. The figures are loss (nats), accuracy and agreement."""

    name = "masked-lm"
    title = "masked language models"
    one = "a masked language model"
    has_own_loss = True
    masks = True

    @property
    def roles(self) -> tuple[Role, ...]:
        """A text."""
        return (TEXT,)

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' masked language models, and has no decoder.

        `BartForConditionalGeneration` is such a class; what it writes is compared by `seq2seq`.
        """
        named = type(teacher).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
        return named and not teacher.config.is_encoder_decoder

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads and masks."""
        return DataCollatorForLanguageModeling(self.inputs.processor)

    def scored(self, features: Dataset, batch_size: int, seed: int) -> list[Batch]:
        """Return batches in which the same tokens are masked for all models."""
        return masked_batches(features, self.inputs.processor, batch_size, seed)

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the token that the teacher predicts at each masked one `(tokens,)`."""
        return masked_lm_score(self.teacher, batches).predictions

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return loss and accuracy on masked tokens, and the share at which the predicted token is the teacher's."""
        masked = masked_lm_score(model, batches)
        own = {"masked_lm_loss": masked.loss, "masked_lm_accuracy": masked.accuracy}
        return own if wanted is None else own | {"agreement": agreement(masked.predictions, wanted)}
