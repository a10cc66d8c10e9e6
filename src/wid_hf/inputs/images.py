"""Images, by an image processor."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor

from ..rows.roles import IMAGE
from .inputs import Columns
from .stored import StoredInputs


class ImageInputs(StoredInputs):
    """Pixels of an image, in the size that the processor makes."""

    unit = "images"
    roles = (IMAGE,)
    loaders = (AutoImageProcessor,)

    def encode(self, columns: Columns, max_length: int) -> dict[str, Any]:
        """Return what the processor makes of images as PIL has them; `max_length` has no effect."""
        images = [image.convert("RGB") for image in columns[IMAGE.name]]  # as pipelines of transformers do
        return dict(self.processor(images, return_tensors="pt"))
