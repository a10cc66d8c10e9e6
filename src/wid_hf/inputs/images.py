"""Images, by an image processor."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor

from ..rows.roles import IMAGE
from .inputs import Columns
from .stored import StoredInputs

BRIGHTEST = 65_535  # of 16 bits


class ImageInputs(StoredInputs):
    """Pixels of an image, in the size that the processor makes."""

    unit = "images"
    roles = (IMAGE,)
    loaders = (AutoImageProcessor,)

    def encode(self, columns: Columns, max_length: int) -> dict[str, Any]:
        """Return what the processor makes of images as PIL has them; `max_length` has no effect."""
        return dict(self.processor([*map(_in_colours, columns[IMAGE.name])], return_tensors="pt"))


def _in_colours(image: Any) -> Any:
    """Return an image in RGB, as pipelines of transformers do; grey of 16 bits is scaled, which PIL would cut off."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (255 / BRIGHTEST)).convert("L")
    return image.convert("RGB")
