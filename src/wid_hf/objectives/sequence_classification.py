"""Classifiers of texts and of pairs of texts, regressions and rerankers."""

from __future__ import annotations

import warnings

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from ..errors import WidWarning
from ..inputs import Inputs
from .classification import Classification


class SequenceClassification(Classification):
    """Give each text, or pair of texts, scores."""

    name = "sequence-classification"
    title = "classifiers of texts"
    one = "a classifier of texts"

    def __init__(self, teacher: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__(teacher, inputs)
        config, tokenizer = teacher.config.get_text_config(), inputs.processor
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
