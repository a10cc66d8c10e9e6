"""How rows of data become what a model's forward takes: one file per kind of input."""

from __future__ import annotations

from .images import ImageInputs
from .inputs import Batch, Columns, Inputs, batches
from .registry import READABLE, STORED, find_inputs
from .sounds import SoundInputs
from .texts import TextInputs, check_content, tokenize

__all__ = [
    "READABLE",
    "STORED",
    "Batch",
    "Columns",
    "ImageInputs",
    "Inputs",
    "SoundInputs",
    "TextInputs",
    "batches",
    "check_content",
    "find_inputs",
    "tokenize",
]
