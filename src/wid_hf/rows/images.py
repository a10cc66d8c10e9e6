"""Images of which some cannot be read. Called by `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Image


@dataclass
class CheckedImage(Image):
    """`datasets.Image` that gives the error in the place of an image that cannot be decoded, instead of raising it."""

    def encode_example(self, value: Any) -> Any:
        """Return what is stored of an image; an error stays one, for streams encode what they decoded."""
        return value if isinstance(value, Exception) else super().encode_example(value)

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """Return the image, as PIL has it, or why it cannot be read."""
        try:
            return super().decode_example(value, token_per_repo_id)
        except Exception as error:  # decoders raise errors of every class
            return error
