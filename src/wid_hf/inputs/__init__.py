"""How rows of data become what a model's forward takes: one file per kind of input."""

from __future__ import annotations

from .inputs import Batch, Columns, Inputs, batches
from .texts import TextInputs, check_content, tokenize

__all__ = ["Batch", "Columns", "Inputs", "TextInputs", "batches", "check_content", "tokenize"]
