"""Classifiers of sounds."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from .classification import Classification


class AudioClassification(Classification):
    """Give each sound scores."""

    name = "audio-classification"
    title = "classifiers of sounds"
    one = "a classifier of sounds"

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' audio classifiers."""
        return type(teacher).__name__ in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES.values()
