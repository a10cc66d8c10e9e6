"""Classifiers of images."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from .classification import Classification


class ImageClassification(Classification):
    """Give each image scores."""

    name = "image-classification"
    title = "classifiers of images"
    one = "a classifier of images"

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' image classifiers."""
        classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()  # some config types have several
        return any(type(teacher).__name__ in ([names] if isinstance(names, str) else names) for names in classes)
